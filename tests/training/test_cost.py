"""What a row costs: steps and parameters that are known, hours that follow from them."""

import subprocess
import sys
from pathlib import Path

import pytest

from configs.roadmap import ROWS, get_config
from spatialllm_jax.models.flops import linear_parameters
from spatialllm_jax.models.presets import VICUNA_7B
from spatialllm_jax.training.cost import row_cost, text_table

ROOT = Path(__file__).resolve().parents[2]


def test_llava():
    """LLaVA-v1.5's own steps; the 7B model and its connector; six operations per parameter and position."""
    align, tune = row_cost(get_config("llava15").to_dict(), devices=8, peak=312e12, mfu=0.5)
    assert (align.steps, tune.steps) == (2181, 5198)
    assert align.trainable == 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert tune.trainable - align.trainable == 6_738_415_616
    per_sample = tune.flops / tune.samples
    assert per_sample == pytest.approx(6 * linear_parameters(VICUNA_7B) * (576 + 250), rel=0.06)
    assert tune.hours == pytest.approx(tune.flops / (8 * 312e12 * 0.5) / 3600)
    assert "all" in text_table([align, tune])


def test_every_row_has_a_cost():
    for row in ROWS:
        stages = [cost.stage for cost in row_cost(get_config(row).to_dict(), devices=8, peak=312e12, mfu=0.4)]
        assert stages[-2:] == ["align", "tune"], row


def test_command():
    def run(*flags):
        return subprocess.run([sys.executable, "-m", "launch.train", "--config=configs/roadmap.py:llama3", "--dry-run",
                               *flags], cwd=ROOT, capture_output=True, text=True)

    done = run("--assume=TPU v5p:16:0.5")
    assert done.returncode == 0 and "16 x TPU v5p" in done.stdout
    for assume in ("A1000:8:0.4", "NVIDIA A100:0:0.4", "NVIDIA A100:8:40", "x"):
        bad = run(f"--assume={assume}")
        assert bad.returncode == 2 and "DEVICE:NUMBER:MFU" in bad.stderr and "Traceback" not in bad.stderr
