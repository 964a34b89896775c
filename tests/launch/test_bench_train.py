"""`python -m launch.bench train`: both sides compute the same, another model is refused, samples are laid out right."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from launch import bench_report, bench_train
from launch import bench_train_data as data
from spatialllm_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SIZE = data.Size(width=256, layers=1, vocabulary=64, grid=2, rows=2, length=64, packed_rows=1)
SMALL = ["--width", "256", "--layers", "1", "--vocabulary", "64", "--grid", "2", "--rows", "2", "--length", "64",
         "--packed-rows", "1", "--repeats", "2", "--passes", "1", "--batches", "2"]


def run(*flags):
    pytest.importorskip("torch")
    return subprocess.run([sys.executable, "-m", "launch.bench", "train", *SMALL, *flags], cwd=ROOT, text=True,
                          env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, timeout=300)


@pytest.mark.slow
def test_figures():
    done = run("--json")
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["loss_difference"] < 1e-4, "three steps apart only by rounding: gradients and updates agree"
    for name in ("step_seconds", "supervised_per_second"):
        low, high = result[f"{name}_ours_spread"]
        assert 0 < low <= result[f"{name}_ours"] <= high
        assert result[f"{name}_ratio"] > 0 and result[f"{name}_processor_ratio"] > 0
    assert 100 < result["peak_mib_ours"] <= result["peak_mib_samples_ours"]
    assert 100 < result["peak_mib_peer"] <= result["peak_mib_samples_peer"]
    assert 0 < result["density_padded_modality"] <= 1 and 0 < result["density_packed"] <= 1
    assert {"jax", "torch", "transformers", "numpy"} <= result["versions"].keys()
    assert result["machine"]["cores"] >= 1 and result["machine"]["cpu"]


@pytest.mark.slow
def test_another_model_is_refused():
    done = run("--perturb", "0.01", "--batches", "0")
    assert done.returncode == 2
    assert "these are different computations" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("flags", "message"), [
    (["--width", "300"], "--width 300 must be a multiple of 256"),
    (["--length", "100"], "--length 100 does not hold a picture of 144 visual tokens"),
    (["--supervised", "0"], "--supervised 0.0 is a share"),
    (["--repeats", "0"], "the other numbers at least 1"),
    (["--cores", "4096"], "--cores 4096 is more than"),
])
def test_mistakes(flags, message):
    with pytest.raises(UserError, match=message):
        bench_train.bench(flags)


def test_disagreement_is_an_error():
    assert bench_train._agreed({"losses": [2.0]}, {"losses": [2.001]}) == pytest.approx(5e-4, rel=0.01)
    for loss in (2.01, float("nan")):
        with pytest.raises(UserError, match="different computations"):
            bench_train._agreed({"losses": [loss]}, {"losses": [2.0]})


def test_both_layouts_hold_the_same():
    rng = np.random.default_rng(0)
    samples = [data.draw(SIZE, 20, True, 0.5, rng), data.draw(SIZE, 9, False, 0.5, rng),
               data.draw(SIZE, 30, True, 0.5, rng)]
    packed, padded = data.for_ours(SIZE, [samples[:2], samples[2:]], 40), data.for_peer(samples)
    assert packed["segment_ids"][0].tolist() == [1] * 20 + [2] * 9 + [0] * 11
    assert packed["image_mask"].sum() == len(padded["pixel_values"]) == 2
    # Position t predicts t + 1 here, and transformers shifts its labels itself.
    labels = padded["labels"][padded["labels"] != data.IGNORED]
    assert packed["targets"][packed["loss_weights"] > 0].tolist() == labels.tolist()
    assert (packed["image_index"][0] >= 0).sum() == 4 == (padded["input_ids"][0] == data.image_token(SIZE)).sum()
    assert padded["attention_mask"].sum(axis=1).tolist() == [20, 9, 30]
    assert "attention_mask" not in data.for_peer(samples[:1])


def test_batches_of_the_peer():
    rng = np.random.default_rng(0)
    samples = [data.draw(SIZE, int(n), bool(k % 4), 0.5, rng) for k, n in enumerate(rng.integers(10, 60, 22))]
    for batches in (data.grouped(samples, 4, rng), data.by_length(samples, 4)):
        assert sorted(id(s) for batch in batches for s in batch) == sorted(id(s) for s in samples)
        assert max(len(batch) for batch in batches) == 4
    kinds = [{s.picture is None for s in batch} for batch in data.grouped(samples, 4, rng)]
    assert sum(len(kind) > 1 for kind in kinds) <= 2, "only what is left over is mixed"
    assert data.density(data.by_length(samples, 4)) > data.density([samples])


def test_packed_rows_take_whole_samples():
    size = dataclasses.replace(SIZE, length=57, grid=4, packed_rows=2)
    batches = data.packed_rows(size, 2, 0.5, np.random.default_rng(0))
    assert [len(batch) for batch in batches] == [2, 2]
    used = [sum(len(s.tokens) for s in row) for batch in batches for row in batch]
    assert max(used) <= size.packed[1] == 114 and np.mean(used) > 0.7 * 114


def test_report(capsys):
    figures = bench_report.median("seconds", [3.0, 1.0, 2.0])
    assert figures == {"seconds": 2.0, "seconds_spread": [1.0, 3.0]}
    bench_report.table(figures)
    assert capsys.readouterr().out.split() == ["seconds", "2.0", "(1.0", "to", "3.0)"]
    result = bench_report.finish(figures, "flax")
    assert {"python", "jax", "numpy", "flax"} == result["versions"].keys()
    assert "jax" in capsys.readouterr().out
