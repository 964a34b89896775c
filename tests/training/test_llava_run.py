"""A stage on a LLaVA file: packed rows of pictures and texts, sized by samples, for one pass."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from spatialllm_jax.parallel.mesh import make_mesh
from spatialllm_jax.training import loop, run
from tests.compiled import compilation_cache  # noqa: F401


def talk(*values):
    return [{"from": ("human", "gpt")[k % 2], "value": value} for k, value in enumerate(values)]


@pytest.fixture
def llava(tmp_path):
    (tmp_path / "data").mkdir()
    entries = [{"id": "t", "conversations": talk("Is it far?", "no")}] * 10 + [{"id": "broken"}]
    for index in range(30):
        Image.fromarray(np.full((10, 14, 3), 8 * index, np.uint8)).save(tmp_path / f"data/{index}.png")
        entries.append({"id": f"p{index}", "image": f"{index}.png", "conversations": talk(
            "<image>\nHow bright?", "dark" if index < 15 else "bright", "Sure?", "yes")})
    (tmp_path / "data" / "mix.json").write_text(json.dumps(entries))
    return str(tmp_path / "data" / "mix.json")


def test_one_pass_of_packed_rows(llava, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "make_mesh", lambda **_: make_mesh(devices=jax.devices()[:2]))
    rows = {"samples": 24, "length": 64, "images": 4, "image_size": 16, "resize": "stretch", "window": 40}
    config = {"row": "nano", "size": "nano", "seed": 0,
              "model": {"preset": "nano", "text_tower": "nano", "fit_vocabulary": True, "dtype": "float32"},
              "weights": {}, "tokenizer": "", "features": "", "mesh": {"data": -1},
              "stages": {"tune": {"objective": "next_token", "trainable": "connector|llm", "steps": 0, "rows": rows,
                                  "template": "compact", "log_every": 1,
                                  "optimizer": {"learning_rate": 5e-3, "schedule": "constant", "warmup": 0.0},
                                  "sources": {"mix": {"path": llava, "form": "dialogue", "count": 120}}}}}
    summary = run.train_row(config, tmp_path / "run", watch=loop.Watch(progress=False))
    lines = [json.loads(line) for line in (tmp_path / "run/tune/metrics.jsonl").read_text().splitlines()]
    # As many rows per step as hold 24 samples; 120 samples are the steps of a pass.
    supervised = sum(line["tokens"] for line in lines)
    assert len(lines) == summary["stages"]["tune"]["step"] == pytest.approx(120 / 24, abs=2)
    assert lines[-1]["loss"] < lines[0]["loss"] and np.isfinite(lines[-1]["loss"])
    # 10 texts of one answer and 30 pictures of two, each answer one word and its end, about three times.
    assert supervised == pytest.approx(3 * 2 * (10 + 2 * 30), rel=0.25)
