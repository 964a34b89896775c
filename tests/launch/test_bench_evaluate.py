"""The benchmark of benchmarks at its smallest."""

import pytest

pytest.importorskip("torch")

from launch import bench_evaluate
from spatialllm_jax.errors import UserError

SMALL = ["--layers", "1", "--width", "256", "--vocabulary", "1024", "--grid", "2", "--batch", "4", "--new", "3",
         "--pictures", "2", "--questions", "2", "--repeats", "1", "--cores", "1"]


@pytest.mark.slow
def test_both_sides_say_the_same_are_timed_and_programs_counted():
    found = bench_evaluate.bench(SMALL)
    assert found["questions"] == 16
    for mode in ("generate", "score"):
        assert found[f"{mode}_equal_answers"] == 1.0 and found[f"{mode}_programs"] > 0
        assert found[f"{mode}_ratio"] == pytest.approx(found[f"{mode}_ours"] / found[f"{mode}_peer"], rel=0.1)
    assert {"jax", "torch", "transformers"} <= found["versions"].keys() and found["machine"]["cpu"]


@pytest.mark.slow
def test_another_model_is_refused():
    with pytest.raises(UserError, match="different computations"):
        bench_evaluate.bench([*SMALL, "--perturb", "0.3"])


@pytest.mark.parametrize(("flags", "match"), [
    (["--questions", "0"], "--questions 0 must be at least 1"),
    (["--vocabulary", "100"], "--vocabulary 100 is too small; give more than"),
    (["--cores", "4096"], "--cores 4096 is more than")])
def test_mistakes(flags, match):
    with pytest.raises(UserError, match=match):
        bench_evaluate.bench([*SMALL, *flags])
