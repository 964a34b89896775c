"""The container's recipe names files, extras and flags that there are."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from launch import serve
from spatialllm_jax.errors import UserError

ROOT = Path(__file__).parents[2]
RECIPE = (ROOT / "Dockerfile").read_text()


def test_what_is_copied_is_there_and_let_in():
    copied = {name for line in re.findall("^COPY (.*)", RECIPE, re.M) for name in line.split()[:-1]}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_in and all((ROOT / name).exists() for name in copied)
    assert {"spatialllm_jax", "launch", "convert", "pyproject.toml", "constraints.txt"} <= copied


def test_extras_are_known():
    named = re.search("ARG EXTRAS=(.*)", RECIPE)[1].split(",") + re.findall(r"serve,(\w+) for", RECIPE)
    assert named == ["serve", "cuda12", "tpu"]
    assert set(named) <= tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()


def test_its_command_is_understood():
    python, module, name, *flags = json.loads(re.search("^ENTRYPOINT (.*)", RECIPE, re.M)[1])
    assert (python, module, name) == ("python", "-m", "launch.serve")
    with pytest.raises(UserError, match="missing/model"):       # all else was understood
        serve.main([*flags, "--port", "0", "--compilation-cache", "none", "--model", "missing/model"])
