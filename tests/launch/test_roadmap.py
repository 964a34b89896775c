"""The roadmap at smoke size: all ten rows, the very command."""

import json
import os
import subprocess
import sys

import pytest

from configs.roadmap import ROWS
from spatialllm_jax.errors import UserError
from spatialllm_jax.sources.rendered import RenderConfig, iter_scenes


def run(*arguments):
    environment = {**os.environ, "XLA_FLAGS": ""}       # one device, as users have
    return subprocess.run([sys.executable, "-m", "launch.roadmap", *arguments], env=environment, text=True,
                          capture_output=True, timeout=1800)


@pytest.mark.slow
def test_all_rows(tmp_path):
    try:
        next(iter_scenes(RenderConfig(image_size=32), 0, 0, 1))
    except UserError as error:
        pytest.skip(f"no OpenGL here: {error}")
    arguments = ("--out", str(tmp_path / "r"), "--budget", "0.0001", "--dinov2", "random", "--json")
    part = run(*arguments, "--rows", "ft1m")
    assert part.returncode == 0, part.stderr[-2000:]
    assert list(json.loads(part.stdout.splitlines()[-1])["rows"]) == ["ft1m"]
    whole = run(*arguments)
    assert whole.returncode == 0, whole.stderr[-2000:]
    summary = json.loads(whole.stdout.splitlines()[-1])
    assert list(summary["rows"]) == list(ROWS) and summary["blind"]["overall"]["n"] > 0
    assert summary == json.loads((tmp_path / "r" / "summary.json").read_text())
    assert "stage 0, contrastive" in (tmp_path / "r" / "report.html").read_text()
    # Rows of other encoders, stage 0 or data end with other weights.
    models = {row: (tmp_path / "r" / "rows" / row / "tune" / "model") for row in ROWS}
    assert all((folder / "chat.json").exists() for folder in models.values())


def test_mistakes(tmp_path):
    for flags, words in ((("--rows", "llama4"), "'llama4' is no row"), (("--budget", "0"), "--budget")):
        found = run("--out", str(tmp_path / "r"), *flags)
        assert found.returncode == 2 and words in found.stderr and "Traceback" not in found.stderr
        assert not (tmp_path / "r").exists()
