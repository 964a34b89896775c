"""A user's mistakes, command by command: one sentence that names the culprit, exit code 2, nothing half-written."""

import errno
import importlib
import sys

import pytest

from launch import cli

ROADMAP = "--config=configs/roadmap.py:align_in166k"
QUESTION = "What is this?"


def run(monkeypatch, module, *argv):
    """Exit code of `python -m MODULE ARGV`, within this process."""
    monkeypatch.setattr(sys, "argv", [module, *argv])
    with pytest.raises(SystemExit) as stopped:
        cli.run(importlib.import_module(module).main)
    return stopped.value.code


CASES = {
    "no config file": ("launch.train", ["--config=configs/nothing.py"], "configs/nothing.py"),
    "unknown row": ("launch.train", ["--config=configs/roadmap.py:align_in167k"], "unknown row 'align_in167k'"),
    "unknown field": ("launch.train", [ROADMAP, "--config.stages.align.stepz=3"], "stepz"),
    "not a number": ("launch.train", [ROADMAP, "--config.stages.align.steps=many"], "many"),
    "no weights": ("launch.train", [ROADMAP, "--config.size=tiny", "--config.tokenizer=missing/tokenizer"], "missing"),
    "no model to evaluate": ("launch.evaluate", ["--model", "missing/model", "--data", "{data}"], "missing/model"),
    "no model, features": ("launch.evaluate", ["--model", "missing/model", "--data", "{data}", "--features", "{out}"],
                           "missing/model"),
    "no dataset": ("launch.evaluate", ["--model", "missing/model", "--data", "missing/data"], "missing/data"),
    "no split": ("launch.evaluate", ["--model", "m", "--data", "{data}", "--split", "dev"], "no split 'dev'"),
    "no image": ("launch.ask", [QUESTION, "--model", "m", "--image", "missing.jpg"], "missing.jpg"),
    "not an image": ("launch.ask", [QUESTION, "--model", "m", "--image", "{text}"], "notes.jpg"),
    "no question": ("launch.ask", [" ", "--model", "m", "--image", "{text}"], "question is empty"),
    "region outside": ("launch.ask", [QUESTION, "--model", "m", "--image", "{picture}", "--region", "0,0,2,1"],
                       "--region 0,0,2,1"),
    "no model to ask": ("launch.ask", [QUESTION, "--model", "missing/model", "--image", "{picture}"], "missing/model"),
    "unknown dataset": ("launch.generate", ["--dataset", "spatial_vqb", "--out", "{out}/x"], "spatial_vqb"),
    "no annotations": ("launch.generate", ["--dataset", "spatial_vqa", "--source", "omni3d", "--input", "missing.json",
                                           "--out", "{out}/x"], "missing.json"),
    "bad count": ("launch.generate", ["--dataset", "spatial_vqa", "--count", "few", "--out", "{out}/x"], "few"),
    "nothing to inspect": ("launch.inspect", ["missing/data", "--out", "{out}/x.html"], "missing/data"),
    "nothing to report": ("launch.report", ["missing/run"], "missing/run"),
    "no budget": ("launch.quickstart", ["--budget", "0", "--out", "{out}/x"], "--budget 0"),
    "no such weights": ("convert.from_hf", ["missing/hf", "--out", "{out}/x"], "missing/hf"),
    "not weights": ("convert.from_hf", ["{text}", "--out", "{out}/x"], "notes.jpg"),
    "hub id without the hub": ("convert.from_hf", ["facebook/dinov2-large", "--out", "{out}/x"], "hf download"),
    "occupied folder": ("convert.from_hf", ["{text}", "--out", "{data}"], "exists and is not a model folder"),
    "no threads": ("convert.from_hf", ["{text}", "--out", "{out}/x", "--threads", "0"], "--threads 0"),
    "no model to export": ("convert.to_hf", ["missing/model", "--out", "{out}/x"], "missing/model"),
    "bad shard size": ("convert.to_hf", ["missing/model", "--out", "{out}/x", "--shard-size", "big"], "--shard-size"),
    "nothing to verify": ("convert.verify", ["missing/hf"], "missing/hf"),
    "no threads to bench": ("launch.bench", ["convert", "--folder", "{out}/x", "--threads", "0"], "--threads 0"),
    "unknown benchmark": ("launch.bench", ["sleep"], "'sleep' does not exist"),
    "bench over a folder": ("launch.bench", ["convert", "--folder", "{out}"], "--folder"),
    "bench into nowhere": ("launch.bench", ["checkpoint", "--folder", "{out}/x"], "--folder"),
    "no megabytes": ("launch.bench", ["checkpoint", "--megabytes", "0"], "--megabytes"),
    "negative turns": ("launch.bench", ["questions", "--turns", "-5"], "--turns"),
    "no such row": ("launch.roadmap", ["--rows", "llama9", "--out", "{out}/x"], "'llama9' is no row"),
    "nothing to validate": ("launch.validate_data", ["--config=configs/nothing.py"], "configs/nothing.py"),
    "nothing to exclude": ("launch.generate", ["--dataset", "captions", "--count", "2", "--exclude", "missing/data",
                                               "--out", "{out}/x"], "missing/data"),
    "unknown form": ("launch.generate", ["--dataset", "captions", "--forms", "maybe", "--out", "{out}/x"], "maybe"),
    "unknown machine": ("launch.train", [ROADMAP, "--dry-run", "--assume=abacus:8:0.4"], "abacus"),
    "unknown asset": ("launch.fetch_assets", ["--only", "dinov9", "--out", "{out}/x"], "dinov9"),
    "bad layers": ("launch.probe", ["--encoders", "a=w@6@six", "--data", "d"], "--encoders 'a=w@6@six'"),
    "bad picture size": ("launch.probe", ["--encoders", "a=w", "--data", "d", "--image-size", "-14"], "-14 is neg"),
    "nothing to probe": ("launch.probe", ["--encoders", "a=w", "--data", "d", "--limit", "0"], "--limit 0"),
    "an encoder without folder": ("launch.probe", ["--data", "d", "--encoders", "clip"], "--encoders 'clip'"),
    "an unknown mix": ("launch.probe", ["--data", "d", "--encoders", "clip=w", "--mixes", "clip+mae"], "'mae' is none"),
    "unknown pose config": ("launch.train", ["--config=configs/pose.py:photos"], "unknown pose config 'photos'"),
    "no pose data": ("launch.train", ["--config=configs/pose.py:rendered", "--config.weights=missing/w"], "missing/w"),
    "pose costs": ("launch.train", ["--config=configs/pose.py:rendered", "--dry-run"], "--dry-run"),
    "no pose estimator": ("launch.pose", ["evaluate", "--model", "missing/m", "--data", "d"], "missing/m"),
    "no box": ("launch.pose", ["estimate", "--model", "m", "--image", "{picture}", "--box", "1,2,3"], "--box 1,2,3"),
    "no pictures to render": ("launch.pose", ["render", "--out", "{out}/x", "--count", "train=0"], "--count 'train=0'"),
    "no meshes": ("launch.pose", ["render", "--out", "{out}/x", "--meshes", "missing/m"], "--only meshes"),
    "no assets for the demo": ("launch.pose", ["demo", "--assets", "missing/a", "--out", "{out}/x"], "--only dinov2"),
    "scores over a folder": ("launch.pose", ["evaluate", "--model", "m", "--data", "d", "--out", "{out}"],
                             "is a folder"),
    "a page below a file": ("launch.probe", ["--encoders", "a=w", "--data", "d", "--page", "{picture}/page.html"],
                            "is no folder; name another file"),
    "no weights to probe": ("launch.probe", ["--encoders", "a=missing/w", "--data", "{data}"], "missing/w"),
}


@pytest.fixture
def places(tmp_path, tiny_dataset):
    from PIL import Image

    (tmp_path / "notes.jpg").write_text("this is no picture")
    Image.new("RGB", (32, 24)).save(tmp_path / "picture.png")
    (tmp_path / "out").mkdir()
    return {"data": tiny_dataset, "text": str(tmp_path / "notes.jpg"), "picture": str(tmp_path / "picture.png"),
            "out": str(tmp_path / "out")}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_exit_code_two(case, places, monkeypatch, capsys, tmp_path):
    module, argv, said = CASES[case]
    argv = [part.format(**places) for part in argv]
    if module == "launch.train":
        argv += ["--workdir", f"{places['out']}/x"]
    assert run(monkeypatch, module, *argv) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in errors if line.startswith("error: ")]) == 1, errors
    assert said in errors[-1] and "Traceback" not in "\n".join(errors)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize("number, said", [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"),
                                          (errno.EACCES, "permission denied"), (errno.EDQUOT, "quota")])
def test_a_full_or_read_only_disk(number, said, monkeypatch, capsys, tmp_path):
    from spatialllm_jax.data import storage

    folder = tmp_path / "data"

    def full(*_, **__):
        raise OSError(number, "no", str(folder))

    monkeypatch.setattr(storage, "_write_split", full)
    code = run(monkeypatch, "launch.generate", "--dataset", "captions", "--count", "2", "--out", str(folder))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and error.startswith("error: cannot write: ") and said in error
    assert list(tmp_path.iterdir()) == []


def test_other_failures_of_the_system_are_not_hidden(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command"])

    def broken(argv):
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        cli.run(broken)


def test_a_reader_that_has_left_is_no_failure(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command"])
    monkeypatch.setattr(cli.os, "dup2", lambda *_: None)

    def printing(argv):
        raise BrokenPipeError(errno.EPIPE, "broken pipe")

    with pytest.raises(SystemExit) as stopped:
        cli.run(printing)
    assert stopped.value.code == 0
