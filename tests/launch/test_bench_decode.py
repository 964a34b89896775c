"""The generation benchmark at its smallest."""

import pytest

pytest.importorskip("torch")

from launch import bench_decode
from spatialllm_jax.errors import UserError

SMALL = ["--layers", "1", "--width", "256", "--vocabulary", "256", "--grid", "2", "--batch", "3", "--new", "4",
         "--batches", "2", "--repeats", "1", "--cores", "1"]


@pytest.mark.slow
def test_both_sides_say_the_same_and_are_timed():
    found = bench_decode.bench(SMALL)
    for what in ("tokens", "uneven_tokens"):
        name = f"{what}_per_second"
        assert found[f"{name}_equal_answers"] == 1.0
        assert found[f"{name}_ratio"] == pytest.approx(found[f"{name}_ours"] / found[f"{name}_peer"], rel=0.1)
    assert {"jax", "torch", "transformers"} <= found["versions"].keys() and found["machine"]["cpu"]


def test_another_model_is_refused():
    with pytest.raises(UserError, match="different computations"):
        bench_decode.bench([*SMALL, "--perturb", "0.3"])


@pytest.mark.parametrize(("flags", "match"), [
    (["--new", "0"], "--new 0 must be at least 1"), (["--spread", "nan"], "--spread nan must be from 0 to 10"),
    (["--width", "300"], "--width 300 must be a multiple of 256"),
    (["--cores", "4096"], "--cores 4096 is more than")])
def test_mistakes(flags, match):
    with pytest.raises(UserError, match=match):
        bench_decode.bench([*SMALL, *flags])
