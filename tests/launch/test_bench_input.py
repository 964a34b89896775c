"""`python -m launch.bench input`: both pipelines really read, and first fit is counted right."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from launch import bench_input
from spatialllm_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_first_fit_by_hand():
    ones = np.ones(6, int)
    assert bench_input.first_fit(np.array([6, 6, 4, 4, 5, 5]), ones, 10, 2) == pytest.approx(1.0)
    assert bench_input.first_fit(np.array([6, 6, 4, 4, 5, 5]), ones, 10, 1) == pytest.approx(0.5)


SMALL = """
import json
from launch import bench, bench_input
bench_input._WIDTH, bench_input._HEIGHT = 64, 48
print(json.dumps(bench.main(["input", "--images", "32", "--image-size", "28", "--repeats", "1", "--samples", "2048"])))
"""


@pytest.mark.slow
def test_figures():
    """In a process of its own: the peer's loader forks, which a process with JAX's threads must not."""
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", SMALL], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ratio"] == pytest.approx(result["ours"] / result["peer"], rel=0.05)
    assert 0.97 <= result["packed_4096"] <= 1 and result["packed_4096"] > result["first_fit_4096"]


def test_mistakes():
    with pytest.raises(UserError, match="--images must be at least 32"):
        bench_input.bench(["--images", "8"])
