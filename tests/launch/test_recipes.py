"""The recipes people start from: linted, checked against a schema, and run as far as this machine goes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import numpy as np
import pytest
import yaml

from tests.training.nano import CONFIG, losses, tree

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "launch" / "recipes"
# Stands in for SLURM's srun on two nodes: the same command twice, each told who it is.
SRUN = """#!/usr/bin/env bash
while [ "${{1#--}}" != "$1" ]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_LOCALID=0 JAX_COORDINATOR_PORT={port}
SLURM_PROCID=1 "$@" & SLURM_PROCID=0 "$@"; one=$?
wait $! && exit $one
"""


@pytest.mark.parametrize("script", ["slurm.sbatch", "tpu_vm.sh"])
def test_scripts_are_clean(script):
    found = subprocess.run([Path(sys.executable).parent / "shellcheck", "-s", "bash", RECIPES / script],
                           capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_kubernetes_schema():
    documents = list(yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text()))
    assert [d["kind"] for d in documents] == ["Service", "Job"]
    for document in documents:
        kubernetes_validate.validate(document, "1.30", strict=True)
    job = documents[1]["spec"]
    flags = job["template"]["spec"]["containers"][0]["args"]
    assert job["completions"] == job["parallelism"] == 2 and "--processes=2" in flags
    assert "--config.mesh.fsdp=16" in flags  # two nodes of eight


@pytest.mark.parametrize("script", ["slurm.sbatch", "tpu_vm.sh"])
def test_usage_is_told(script):
    found = subprocess.run([RECIPES / script], capture_output=True, text=True)
    assert found.returncode != 0 and "usage:" in found.stderr


@pytest.mark.slow
def test_slurm_on_two_nodes(tiny_dataset, tmp_path):
    """The batch script with a stand-in for srun: two processes find each other by SLURM's variables and train."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin" / "srun"
    srun.write_text(SRUN.format(port=port))
    srun.chmod(0o755)
    config = tmp_path / "small.py"
    config.write_text(CONFIG.replace("{config!r}", repr(tree(tiny_dataset, tmp_path, steps=3))))
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable,
                   "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "",
                   "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    # Later flags win: the tiny row and two devices instead of the paper's row and sixteen.
    done = subprocess.run(
        [RECIPES / "slurm.sbatch", "align_in166k", f"--config={config}", "--config.mesh.fsdp=2", "--local-devices=1",
         f"--workdir={tmp_path / 'run'}"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = losses(tmp_path / "run")
    assert len(found) == 3 and np.isfinite(found).all() and "model:" in done.stdout
