"""`launch.validate_data`: what it counts, what it calls unfit, and its exit codes."""

import json
import subprocess
import sys

import numpy as np
import pytest

from launch import validate_data
from spatialllm_jax.data import stream, validation
from spatialllm_jax.data.pipeline import RowConfig
from spatialllm_jax.data.samples import SourceConfig, TextConfig
from spatialllm_jax.errors import UserError

CONFIG = """
from ml_collections import ConfigDict


def get_config():
    rows = {{"batch_size": 0, "samples": 8, "length": 96, "images": 4, "image_size": 16, "window": 30}}
    return ConfigDict({{
        "row": "mine", "size": "nano", "seed": 0, "tokenizer": "", "weights": {{}}, "features": "", "mesh": {{}},
        "model": {{"preset": "nano", "text_tower": "nano", "fit_vocabulary": True, "dtype": "float32"}},
        "stages": {{"tune": {{
            "objective": "next_token", "trainable": "connector", "steps": 0, "rows": rows, "template": "compact",
            "optimizer": {{"learning_rate": 1e-3}},
            "sources": {{"mix": {{"path": {path!r}, "form": "dialogue", "count": -1}}}}}}}}}})
"""


@pytest.fixture
def config_for(tmp_path):
    """path of a LLaVA file -> argument of --config."""
    def write(path):
        file = tmp_path / "config.py"
        file.write_text(CONFIG.format(path=str(path)))
        return f"--config={file}"

    return write


def test_a_good_source(llava_file, config_for, capsys):
    result = validate_data.main([config_for(llava_file), "--quiet"])
    stage = result["stages"]["tune"]
    source = stage["sources"]["mix"]
    assert result["ok"] and result["problems"] == []
    assert (source["records"], source["samples"], source["texts"], source["dropped"]) == (30, 30, 6, {})
    assert stage["samples_per_step"] == pytest.approx(8, abs=stage["samples_per_row"] / 2)
    assert stage["steps"] == round(30 / (stage["batch_size"] * stage["samples_per_row"]))
    assert stage["density"] > stage["padded_density"] and source["passes"] == pytest.approx(1, abs=0.2)
    said = capsys.readouterr().out
    assert "rows hold" in said and "one pass of 30 samples" in said and "percentiles" in said and "####" in said
    limited = validate_data.main([config_for(llava_file), "--quiet", "--limit", "7"])
    assert limited["stages"]["tune"]["sources"]["mix"]["samples"] == 7
    wide = validate_data.main([config_for(llava_file), "--quiet", "--ways", "4"])
    assert wide["stages"]["tune"]["batch_size"] % 4 == 0


def report(path, tokenizer, length=96, rows=None, **kwargs):
    found = stream.mix([SourceConfig("mix", str(path), form="dialogue", **kwargs)], TextConfig("compact", length, 4),
                       tokenizer, seed=0)
    result = validation.check_source(found.parts[0], found.records[0], 0, show_progress=False)
    return result, result.problems("mix", rows or RowConfig(4, length, 1, 16))


def test_every_fault_is_found_and_named(tmp_path, llava_entries, write_llava_folder, tiny_tokenizer):
    path = write_llava_folder(tmp_path / "broken", [*llava_entries, {"id": "no"}])
    walls = tmp_path / "broken" / "walls"
    (walls / "3.png").unlink()
    (walls / "5.png").write_bytes((walls / "5.png").read_bytes()[:40])
    found, problems = report(path, tiny_tokenizer)
    assert found.drawn == 31 and found.samples == 28
    assert found.dropped == {"image file is missing": 1, "image cannot be read": 1, "malformed": 1}
    assert problems == [f"source 'mix': 1 image files are missing, such as {walls / '3.png'}"]
    assert any("5.png" in text for text in found.examples["image cannot be read"])
    strict = report(path, tiny_tokenizer, rows=RowConfig(4, 96, 1, 16, max_broken=1))[1]
    assert any("2 samples cannot be read, more than rows.max_broken=1" in problem for problem in strict)


def test_lengths_truncation_and_masks(tmp_path, llava_file, llava_entries, tiny_tokenizer):
    found, _ = report(llava_file, tiny_tokenizer)
    shorter, problems = report(llava_file, tiny_tokenizer, length=24)
    assert found.truncated == 0 and shorter.truncated > 0 and shorter.lengths.max() <= 24 < found.lengths.max()
    # Nothing is supervised but the answers and their end marks.
    answers = sum(len(tiny_tokenizer.encode(turn["value"])) + 1
                  for entry in llava_entries for turn in entry["conversations"] if turn["from"] == "gpt")
    assert found.supervised == answers and found.text_tokens == found.lengths.sum() - 4 * 24
    path = tmp_path / "silent.json"
    path.write_text(json.dumps([{"conversations": [{"from": "human", "value": "what?"},
                                                   {"from": "gpt", "value": "wall " * size}]} for size in (1, 200)]))
    silent, problems = report(path, tiny_tokenizer)
    assert silent.dropped == {"no supervised token left": 1}
    assert problems == ["source 'mix': 1 of 2 samples have no supervised token left, more than "
                        "rows.max_unsupervised=0.1"]


def test_histogram():
    lines = validation.histogram(np.array([1, 1, 1, 1, 9]), bins=2, width=8)
    assert [line.split()[-1] for line in lines] == ["4", "1"]
    assert [line.count("#") for line in lines] == [8, 2]
    assert len(validation.histogram(np.array([5, 5]))) == 1


def test_exit_codes(llava_file, tmp_path, llava_entries, write_llava_folder, config_for):
    """One process each: 0 and JSON, 1 for missing files, 2 and one sentence for a mistake."""
    broken = write_llava_folder(tmp_path / "gone", llava_entries)
    (tmp_path / "gone" / "walls" / "3.png").unlink()

    def run(*arguments):
        return subprocess.run([sys.executable, "-m", "launch.validate_data", "--quiet", *arguments],
                              capture_output=True, text=True)

    bad = run(config_for(broken), "--json")
    assert bad.returncode == 1 and "1 image files are missing" in bad.stdout
    assert json.loads(bad.stdout.splitlines()[-1])["ok"] is False
    wrong = run(config_for(tmp_path / "nothing.json"))
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "nothing.json does not exist" in wrong.stderr


def test_mistakes(llava_file, config_for):
    with pytest.raises(UserError, match="--limit must not be negative"):
        validate_data.main([config_for(llava_file), "--limit", "-1"])
    with pytest.raises(UserError, match="--stage align: the config has tune"):
        validate_data.main([config_for(llava_file), "--stage", "align"])
