"""`python -m launch.bench input`: both pipelines really read, and first fit is counted right."""

import numpy as np
import pytest

from launch import bench, bench_input
from spatialllm_jax.errors import UserError


def test_first_fit_by_hand():
    ones = np.ones(6, int)
    assert bench_input.first_fit(np.array([6, 6, 4, 4, 5, 5]), ones, 10, 2) == pytest.approx(1.0)
    assert bench_input.first_fit(np.array([6, 6, 4, 4, 5, 5]), ones, 10, 1) == pytest.approx(0.5)


def test_figures(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(bench_input, "_WIDTH", 64)
    monkeypatch.setattr(bench_input, "_HEIGHT", 48)
    result = bench.main(["input", "--images", "32", "--image-size", "28", "--repeats", "1", "--samples", "2048"])
    assert result["ratio"] == pytest.approx(result["ours"] / result["peer"], rel=0.05)
    assert 0.97 <= result["packed_4096"] <= 1 and result["packed_4096"] > result["first_fit_4096"]


def test_mistakes():
    with pytest.raises(UserError, match="--images must be at least 32"):
        bench_input.bench(["--images", "8"])
