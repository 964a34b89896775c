"""Runs as real processes: two that train together, one that is killed, one that is told to stop."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from spatialllm_jax.models import store
from tests.training.nano import CONFIG, lines, losses, tree

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The same programs are compiled in several runs; only the first time costs."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def launch(tmp_path, cache):
    """Starts `launch.train` on a config; returns the process."""
    def start(config, name, *flags, devices=1):
        file = tmp_path / f"{name}.py"
        file.write_text(CONFIG.replace("{config!r}", repr(config)))
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache),
                       "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                       "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        return subprocess.Popen(
            [sys.executable, "-m", "launch.train", f"--config={file}", f"--workdir={tmp_path / name}", "--quiet",
             *flags], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def whole(tiny_dataset, tmp_path_factory, cache):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    file = folder / "whole.py"
    file.write_text(CONFIG.replace("{config!r}", repr(tree(tiny_dataset, folder))))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache), "XLA_FLAGS": "",
                   "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    subprocess.run([sys.executable, "-m", "launch.train", f"--config={file}", f"--workdir={folder / 'run'}", "--quiet"],
                   cwd=ROOT, env=environment, check=True, capture_output=True)
    return folder / "run"


def together(launch, config, name, axis="fsdp"):
    """The output of two processes that train as one, the mesh's `axis` over both."""
    config = {**config, "mesh": {"data": 1, axis: 2}}
    port = free_port()
    pair = [launch(config, name, "--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process-id", str(k))
            for k in range(2)]
    return [finish(process) for process in pair]


@pytest.mark.slow
def test_two_processes_write_what_a_quantised_stage_leaves(launch, tiny_dataset, tmp_path):
    """Split over processes, exact kernels are read and gathered again as one process does."""
    config = tree(tiny_dataset, tmp_path, steps=2, quantize="int4", trainable="connector|llm/.*lora_",
                  llm_lora={"rank": 2, "alpha": 4.0}, keep_lora=True)
    together(launch, config, "pair")
    finish(launch(config, "alone"))
    ours, theirs = (store.load_params(tmp_path / name / "tune" / "model") for name in ("pair", "alone"))
    assert ours.keys() == theirs.keys() and any("lora_" in path for path in ours)
    for path, leaf in ours.items():
        if "lora_" in path or path.startswith("connector/"):
            np.testing.assert_allclose(leaf, theirs[path], atol=2e-4, err_msg=path)
        else:
            np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)


@pytest.mark.parametrize("axis", ["fsdp", pytest.param("context", marks=pytest.mark.slow)])
def test_two_processes_train_as_one(launch, tiny_dataset, tmp_path, whole, axis):
    """Same losses and parameters as a single process, to 1e-5; files are written once. With `context`, each process
    feeds all rows and computes half of every one."""
    outputs = together(launch, tree(tiny_dataset, tmp_path), "pair", axis)
    assert "model:" in outputs[0] and "model:" not in outputs[1]
    np.testing.assert_allclose(losses(tmp_path / "pair"), losses(whole), atol=1e-5, rtol=0)
    ours, theirs = (store.load_params(folder / "tune" / "model") for folder in (tmp_path / "pair", whole))
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_allclose(leaf, theirs[path], atol=2e-4, err_msg=path)


def wait_for(found, process, seconds=120):
    end = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("saves", [(3,), pytest.param((3, 6), marks=pytest.mark.slow)])
def test_kill_9_loses_only_the_steps_since_the_last_save(launch, tiny_dataset, tmp_path, whole, saves):
    """Killed at some moment after a save, and again, the run still ends with the very same parameters."""
    config = tree(tiny_dataset, tmp_path)
    for after in saves:
        process = launch(config, "run")
        saved = tmp_path / "run" / "tune" / "checkpoints" / str(after)
        wait_for(saved.exists, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "run" / "tune" / "model").exists()
    finish(launch(config, "run"))
    assert losses(tmp_path / "run") == losses(whole)
    ours, theirs = (store.load_params(folder / "tune" / "model") for folder in (tmp_path / "run", whole))
    for path, leaf in ours.items():
        assert (np.asarray(leaf) == np.asarray(theirs[path])).all(), path


@pytest.mark.slow
def test_another_mesh_takes_over(launch, tiny_dataset, tmp_path, whole):
    """A run killed on one device goes on over four."""
    config = tree(tiny_dataset, tmp_path)
    process = launch(config, "run")
    wait_for((tmp_path / "run" / "tune" / "checkpoints" / "3").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    config["mesh"] = {"data": 2, "fsdp": 2, "tensor": 1}
    # The mesh is part of the config that a folder holds: the checkpoints move to a new run.
    (tmp_path / "moved" / "tune").mkdir(parents=True)
    shutil.copy(tmp_path / "run" / "tokenizer.json", tmp_path / "moved")
    shutil.copytree(tmp_path / "run" / "tune" / "checkpoints", tmp_path / "moved" / "tune" / "checkpoints")
    finish(launch(config, "moved", devices=4))
    found = lines(tmp_path / "moved")
    assert found[0]["step"] >= 4
    np.testing.assert_allclose([row["loss"] for row in found], losses(whole)[found[0]["step"] - 1:], atol=1e-5, rtol=0)


def test_mistakes(launch, tiny_dataset, tmp_path):
    process = launch(tree(tiny_dataset, tmp_path), "bad", "--coordinator", "127.0.0.1:1")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "also needs --processes" in err and "Traceback" not in err
