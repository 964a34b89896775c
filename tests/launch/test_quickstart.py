"""The quickstart at smoke size: the very command, its outputs, and that a second run reuses them."""

import json
import os
import subprocess
import sys

import pytest

from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.types import SPATIAL_TYPES
from spatialllm_jax.sources.rendered.config import RenderConfig
from spatialllm_jax.sources.rendered.source import iter_scenes


def run(*arguments):
    environment = {**os.environ, "XLA_FLAGS": ""}       # one device, as users have
    return subprocess.run([sys.executable, "-m", "launch.quickstart", *arguments], env=environment, text=True,
                          capture_output=True, timeout=900)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """(folder, arguments, the finished command)"""
    try:
        next(iter_scenes(RenderConfig(image_size=32), 0, 0, 1))
    except UserError as error:
        pytest.skip(f"no OpenGL here: {error}")
    out = tmp_path_factory.mktemp("smoke") / "quickstart"
    arguments = ("--out", str(out), "--budget", "0.0001", "--dinov2", "random", "--json")
    first = run(*arguments)
    assert first.returncode == 0, first.stderr[-2000:]
    return out, arguments, first


def test_smoke(smoke):
    out, _, first = smoke
    summary = json.loads(first.stdout.splitlines()[-1])
    assert summary == json.loads((out / "summary.json").read_text())
    assert set(summary["rows"]) == {"llama3", "align_in166k"} and summary["minutes"] > 0
    for tree in (*summary["rows"].values(), summary["blind"]):
        assert set(tree["by_type"]) <= set(SPATIAL_TYPES) and len(tree["by_type"]) >= 6
        for cell in (tree["overall"], *tree["by_type"].values()):
            assert 0 <= cell["low"] <= cell["acc"] <= cell["high"] <= 1 and cell["n"] > 0
        assert tree["overall"]["n"] == sum(cell["n"] for cell in tree["by_type"].values())
    page = (out / "report.html").read_text()
    assert "closer to camera" in page.lower().replace("_", " ") and "http://" not in page
    assert "closer_to_camera" in first.stdout and "report.html" in first.stdout


@pytest.mark.slow
def test_again(smoke):
    """What is there is used again; other settings are refused."""
    out, arguments, first = smoke
    summary = json.loads(first.stdout.splitlines()[-1])
    before = (out / "rows" / "align_in166k" / "tune" / "model" / "chat.json").stat().st_mtime_ns
    second = run(*arguments)
    assert second.returncode == 0, second.stderr[-2000:]
    again = json.loads(second.stdout.splitlines()[-1])
    assert again["rows"] == summary["rows"] and again["blind"] == summary["blind"]
    assert (out / "rows" / "align_in166k" / "tune" / "model" / "chat.json").stat().st_mtime_ns == before

    other = run("--out", str(out), "--budget", "0.0002", "--dinov2", "random")
    assert other.returncode == 2 and "other settings" in other.stderr and "Traceback" not in other.stderr


@pytest.mark.parametrize(("flags", "word"), [(("--budget", "0"), "--budget"), (("--budget", "-1"), "--budget")])
def test_mistakes(tmp_path, flags, word):
    result = run("--out", str(tmp_path / "q"), *flags)
    assert result.returncode == 2 and word in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "q").exists()
