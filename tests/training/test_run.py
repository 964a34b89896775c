"""Whole rows at the smallest size: learning, exact resume, meshes, freezing."""

import copy
import dataclasses
import itertools
import json
import logging
import os
import signal

import jax
import numpy as np
import pytest

from spatialllm_jax.errors import Interrupted, UserError
from spatialllm_jax.models import store
from spatialllm_jax.parallel.mesh import make_mesh
from spatialllm_jax.training import loop, run
from tests.compiled import compilation_cache  # noqa: F401

GENERAL = {"colour": 1.0, "closer_to_camera": 1.0}


def source(folder, types, form="branches", **kwargs):
    return {"path": folder, "types": types, "form": form, "questions": 2, **kwargs}


def config(folder, tmp_path, **stages):
    """A row of nano size over the tiny dataset; `stages` replaces its stages."""
    rows = {"batch_size": 8, "length": 48, "images": 1, "image_size": 16, "packing": False, "resize": "stretch"}
    common = {"objective": "next_token", "rows": rows, "template": "compact", "log_every": 1, "save_every": 3,
              "optimizer": {"learning_rate": 5e-3, "schedule": "constant", "warmup": 0.0}}
    stages = stages or {"tune": {"steps": 8, "trainable": "connector|llm"}}
    return {"row": "nano", "size": "nano", "seed": 0,
            "model": {"preset": "nano", "text_tower": "nano", "fit_vocabulary": True, "dtype": "float32"},
            "weights": {}, "tokenizer": "", "features": str(tmp_path / "features"), "mesh": {"data": -1},
            "stages": {name: {**copy.deepcopy(common), "sources": {"hand": source(folder, GENERAL)}, **stage}
                       for name, stage in stages.items()}}


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(run, "make_mesh", lambda **_: make_mesh(devices=jax.devices()[:1]))


def train(tree, workdir):
    return run.train_row(tree, workdir, watch=loop.Watch(progress=False))


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same(a, b):
    return a.keys() == b.keys() and all((np.asarray(a[path]) == np.asarray(b[path])).all() for path in a)


@pytest.fixture
def compilations(caplog):
    """A function that tells how often the training step has been compiled in this test."""
    caplog.set_level(logging.DEBUG, "jax._src.interpreters.pxla")
    return lambda: sum(record.getMessage().startswith("Compiling jit(step)") for record in caplog.records)


def test_a_row_learns_in_stages(tiny_dataset, tmp_path, one_device, compilations):
    tree = config(
        tiny_dataset, tmp_path,
        stage0={"steps": 6, "objective": "contrastive", "trainable": ".*lora_", "lora": {"rank": 2, "alpha": 4.0},
                "rows": {"batch_size": 8, "length": 16, "images": 1, "image_size": 16, "packing": False},
                "sources": {"captions": source(tiny_dataset, {"caption": 1.0}, "contrastive")}},
        align={"steps": 5, "trainable": "connector"},
        tune={"steps": 60, "trainable": "connector|llm", "stored_features": True, "save_every": 100})
    summary = train(tree, tmp_path / "run")
    assert compilations() == 3                                          # no step recompiles after the first
    found = losses(tmp_path / "run" / "tune")
    assert len(found) == 60 and np.mean(found[-5:]) < 0.25 * found[0]
    assert summary["stages"]["tune"]["step"] == 60 and summary["stages"]["tune"]["skipped"] == 0
    assert summary["stages"]["tune"]["accuracy/hand"] == summary["stages"]["tune"]["accuracy"] > 0.8

    models = {name: store.load_params(tmp_path / "run" / name / "model") for name in ("stage0", "align", "tune")}
    assert not any("lora_" in path for path in models["stage0"])        # merged at the stage's end
    vision = [path for path in models["align"] if path.startswith("vision/")]
    clip = [path for path in vision if path.startswith("vision/clip/")]
    # Stage 0's tower is what stage 1 starts from, and no later stage touches the encoders.
    assert clip and all((np.asarray(models["stage0"][p]) == np.asarray(models["align"][p])).all() for p in clip)
    assert all((np.asarray(models["align"][p]) == np.asarray(models["tune"][p])).all() for p in vision)
    for path, leaf in models["tune"].items():
        if path.startswith(("llm/", "connector/")):
            assert (np.asarray(leaf) != np.asarray(models["align"][path])).any(), path
    assert not (tmp_path / "run" / "tune" / "checkpoints").exists()
    assert summary["model"] == str(tmp_path / "run" / "tune" / "model")
    # What is done is not done again.
    assert train(tree, tmp_path / "run")["stages"] == summary["stages"] and compilations() == 3

    from spatialllm_jax.data.storage import open_split
    from spatialllm_jax.inference.engine import load_engine
    from spatialllm_jax.inference.prompts import Prompt

    engine = load_engine(summary["model"], batch_size=8)
    assert (engine.settings.template, engine.settings.image_size) == ("compact", 16)
    records = list(open_split(tiny_dataset, "train"))[:6]
    said = engine.generate([Prompt(r.image_id, r.image, "What colour is the wall?") for r in records], max_new_tokens=4)
    assert set(said) <= {"red", "green", "blue"}


@pytest.fixture(scope="module")
def uninterrupted(tiny_dataset, tmp_path_factory):
    """Final parameters and losses of a run that nothing disturbed."""
    tmp_path = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_mesh", lambda **_: make_mesh(devices=jax.devices()[:1]))
        train(config(tiny_dataset, tmp_path), tmp_path / "run")
    return store.load_params(tmp_path / "run" / "tune" / "model"), losses(tmp_path / "run" / "tune")


class Crash(Exception):
    """A power cut."""


@pytest.mark.parametrize("how", ["terminated", pytest.param("interrupted", marks=pytest.mark.slow), "crashed"])
def test_resume_is_exact(tiny_dataset, tmp_path, one_device, monkeypatch, uninterrupted, how):
    tree = config(tiny_dataset, tmp_path)
    calls = itertools.count(1)
    number = signal.SIGTERM if how == "terminated" else signal.SIGINT
    to_device = loop.to_device

    def disturbed(*args):
        if next(calls) == 5:
            if how == "crashed":
                raise Crash
            os.kill(os.getpid(), number)
        return to_device(*args)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "to_device", disturbed)
        with pytest.raises(Crash if how == "crashed" else Interrupted) as stopped:
            train(tree, tmp_path / "run")
    assert how == "crashed" or (stopped.value.step, stopped.value.signal) == (5, number)
    assert signal.getsignal(number) == before
    saved = sorted(int(path.name) for path in (tmp_path / "run/tune/checkpoints").iterdir() if path.name.isdigit())
    # Asked to stop: saved at once, after step 5. Crashed: the checkpoint of step 3 is what there is.
    assert saved[-1] == (3 if how == "crashed" else 5)
    assert not (tmp_path / "run" / "tune" / "model").exists()
    train(tree, tmp_path / "run")
    params, curve = uninterrupted
    assert losses(tmp_path / "run" / "tune") == curve
    assert same(store.load_params(tmp_path / "run" / "tune" / "model"), params)


@pytest.mark.parametrize("shape", [pytest.param({"data": 4, "fsdp": 2}, marks=pytest.mark.slow),
                                   pytest.param({"data": 4, "tensor": 2}, marks=pytest.mark.slow),
                                   {"data": 1, "fsdp": 2, "context": 4}])
def test_eight_devices_give_the_same_losses(tiny_dataset, tmp_path, uninterrupted, compilations, shape):
    tree = {**config(tiny_dataset, tmp_path), "mesh": shape}
    train(tree, tmp_path / "run")
    assert compilations() == 1
    np.testing.assert_allclose(losses(tmp_path / "run" / "tune"), uninterrupted[1], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_contrast_in_chunks_trains_alike(tiny_dataset, tmp_path, compilations):
    """Stage 0 on 8 devices, 3 rows of logits at a time, is stage 0 with the whole matrix."""
    rows = {"batch_size": 16, "length": 16, "images": 1, "image_size": 16, "packing": False}
    stage0 = {"steps": 3, "objective": "contrastive", "trainable": ".*lora_", "lora": {"rank": 2, "alpha": 4.0},
              "rows": rows, "sources": {"captions": source(tiny_dataset, {"caption": 1.0}, "contrastive")}}
    runs = {}
    for chunk in (0, 3):
        tree = config(tiny_dataset, tmp_path, stage0={**stage0, "contrast_chunk": chunk})
        train({**tree, "mesh": {"data": 4, "fsdp": 2, "tensor": 1}}, tmp_path / str(chunk))
        runs[chunk] = losses(tmp_path / str(chunk) / "stage0")
    assert compilations() == 2 and runs[0][-1] < runs[0][0]
    np.testing.assert_allclose(runs[3], runs[0], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_another_seed_is_another_run(tiny_dataset, tmp_path, one_device, uninterrupted):
    tree = {**config(tiny_dataset, tmp_path), "seed": 1}
    train(tree, tmp_path / "run")
    assert losses(tmp_path / "run" / "tune") != uninterrupted[1]
    with pytest.raises(UserError, match="holds a run of another config"):
        train({**tree, "seed": 2}, tmp_path / "run")


def test_user_mistakes(tiny_dataset, tmp_path, one_device):
    tree = config(tiny_dataset, tmp_path)

    def attempt(words, **changes):
        with pytest.raises(UserError, match=words):
            train({**copy.deepcopy(tree), **changes}, tmp_path / "run")
        # A config with a mistake does not occupy the folder: the next attempt may use it.
        assert not (tmp_path / "run" / "config.json").exists()

    attempt("config.stages is empty", stages={})
    attempt("model preset 'mega'", model={**tree["model"], "preset": "mega"})
    attempt(r"config\.model has no field 'depth'", model={**tree["model"], "depth": 3})
    attempt("prefix 'visoin/clip'", weights={"visoin/clip": str(tmp_path / "nowhere")})
    broken = copy.deepcopy(tree)
    broken["stages"]["tune"]["trainable"] = "head"
    attempt("'head' matches no parameter", stages=broken["stages"])
    broken["stages"]["tune"] |= {"trainable": "llm", "sources": {"hand": source(str(tmp_path / "none"), GENERAL)}}
    attempt("none does not exist", stages=broken["stages"])
    with pytest.raises(UserError, match="nowhere is not a model folder"):
        train({**tree, "weights": {"vision/clip": str(tmp_path / "nowhere")}}, tmp_path / "run")


def test_checkpoints_of_another_shape_are_named(tiny_dataset, tmp_path, one_device, monkeypatch):
    tree = config(tiny_dataset, tmp_path)
    to_device, calls = loop.to_device, itertools.count(1)

    def crash(*args):
        if next(calls) == 5:
            raise Crash
        return to_device(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "to_device", crash)
        with pytest.raises(Crash):
            train(tree, tmp_path / "run")
    tree["stages"]["tune"]["trainable"] = "connector"
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(UserError, match="does not fit this config"):
        train(tree, tmp_path / "run")


def test_too_many_bad_steps_stop_the_run(tiny_dataset, tmp_path, one_device, monkeypatch):
    tree = config(tiny_dataset, tmp_path)
    tree["stages"]["tune"] |= {"max_skipped": 2}

    def poisoned(stage, state, *args, **kwargs):
        trainable = {**state.trainable, "llm/norm/scale": float("nan") * state.trainable["llm/norm/scale"]}
        return loop.run_stage(stage, dataclasses.replace(state, trainable=trainable), *args, **kwargs)

    monkeypatch.setattr(run, "run_stage", poisoned)
    with pytest.raises(UserError, match=r"stage 'tune'.*not finite by step 3;.*look at its data, last at train-\d+; "):
        train(tree, tmp_path / "run")
