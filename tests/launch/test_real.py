"""`launch.real`: photographs, assets, own words, the report. What needs fetched packages or the sample photographs
says so when it skips."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from launch import real
from launch.fetch_assets import ASSETS, folder
from spatialllm_jax.data.storage import open_split, write_dataset
from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation import own_words, real_report
from spatialllm_jax.sources.rendered.debian import unpack_libraries
from spatialllm_jax.training.metrics import read_lines
from tests.conftest import tiny_records

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT.parent / "shared" / "data"


def ar(members):
    """An ar archive as in ar(5), written by hand."""
    out = b"!<arch>\n"
    for name, data in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return out


def package(names):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name in names:
            info = tarfile.TarInfo(f"./usr/share/sweethome3d/furniture/{name}")
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    return ar({"debian-binary": b"2.0", "control.tar.xz": b"odd", "data.tar.xz": buffer.getvalue()})


def test_libraries_come_out_of_a_debian_package(tmp_path):
    deb = tmp_path / "some.deb"
    deb.write_bytes(package(["One.sh3f", "readme.txt", "Two.sh3f"]))
    found = unpack_libraries(deb, tmp_path / "meshes")
    assert [(file.name, file.read_text()) for file in found] == [("One.sh3f", "One.sh3f"), ("Two.sh3f", "Two.sh3f")]
    deb.unlink()
    assert unpack_libraries(deb, tmp_path / "meshes") == found      # there already: the package is not needed


@pytest.mark.parametrize(("content", "says"), [
    (None, "cannot be read"), (b"PK", "not a Debian package"), (package(["a.txt"]), "holds no .sh3f"),
    (ar({"data.tar.xz": b"broken"}), "cannot be unpacked"), (ar({"control.tar": b""}), "not a Debian package")])
def test_packages_that_will_not_do_leave_nothing(tmp_path, content, says):
    deb = tmp_path / "some.deb"
    if content is not None:
        deb.write_bytes(content)
    with pytest.raises(UserError, match=says):
        unpack_libraries(deb, tmp_path / "meshes")
    assert not list(tmp_path.glob("meshes*"))


def test_missing_assets_are_named_with_the_command_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets").mkdir()
    for present, missing in ((), "smollm2"), (("smollm2",), "dinov2"), (("smollm2", "dinov2"), "meshes"):
        for name in present:
            (tmp_path / "assets" / ASSETS[name].file).touch()
        with pytest.raises(UserError, match=r"launch\.fetch_assets --only smollm2,dinov2,meshes") as error:
            real.main(["--assets", str(tmp_path / "assets"), "--out", str(tmp_path / "out")])
        assert ASSETS[missing].file in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("flags", "says"), [
    (["--photos", "nowhere"], "--photos nowhere is not a folder"), (["--photos", "empty"], "holds neither"),
    (["--photos-only"], "--photos-only needs --photos"), (["--steps", "0"], "--steps 0"),
    (["--test-scenes", "-1"], "--test-scenes -1")])
def test_bad_flags(tmp_path, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=says):
        real.main([*flags, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_broken_photographs_leave_no_dataset(tmp_path):
    (tmp_path / "photos" / "real3d").mkdir(parents=True)
    (tmp_path / "photos" / "real3d" / "real3d.json").write_text("{")
    with pytest.raises(UserError, match=r"real3d\.json"):
        real.main(["--photos", str(tmp_path / "photos"), "--photos-only", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "photos" / "real3d").exists()


def plan(tmp_path, **changes):
    return dataclasses.replace(real.Plan(tmp_path / "out", tmp_path, None, "auto", 4, 8, 8, 0, 1), **changes)


def test_without_photographs_it_says_what_to_give(tmp_path, capsys):
    assert real.ask_photographs(plan(tmp_path)) == {}
    assert "--photos DIR" in capsys.readouterr().out


def test_a_folder_keeps_its_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert real._settle(plan(tmp_path)) == ""
    clip = tmp_path / real.QUICKSTART_CLIP
    clip.mkdir(parents=True)
    (clip / "config.json").write_text("{}")
    assert real._settle(plan(tmp_path)) == ""                       # chosen once
    assert real._settle(plan(tmp_path, out=tmp_path / "new")) == str(real.QUICKSTART_CLIP)
    with pytest.raises(UserError, match="other settings"):
        real._settle(plan(tmp_path, steps=5))
    with pytest.raises(UserError, match="is not a model folder"):
        real._settle(plan(tmp_path, out=tmp_path / "third", clip="nowhere"))


@pytest.mark.skipif(not (PHOTOS / "real3d" / "real3d.json").exists(), reason="no photographs in ../shared/data")
def test_photographs_become_questions_and_pages(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ["--photos", str(PHOTOS), "--photos-only", "--out", str(tmp_path / "out")]
    result = real.main(arguments)["photographs"]
    assert set(result) == {"real3d", "kitti"}
    assert result["real3d"]["photographs"] == 11 and result["real3d"]["questions"] >= 60
    assert len(result["real3d"]["types"]) == 7
    for name, found in result.items():
        assert found["wrong"] == 0
        asked = [q for record in open_split(tmp_path / "out" / "photos" / name, "test") for q in record.questions]
        assert len(asked) == found["questions"] == sum(found["types"].values())
        assert all(q.region_style == "mark" and "Region [" in q.text for q in asked)
        page = Path(found["page"]).read_text()
        assert "data:image/jpeg;base64," in page and page.count("<article") == len(asked)
        assert list((tmp_path / "out" / "photos" / name).glob("tsv/*.tsv"))
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.array_record*")}
    assert stamps and real.main(arguments)["photographs"] == result
    assert stamps == {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.array_record*")}


def test_things_mentioned():
    vocabulary = ["table", "car", "bus", "washing machine", "person"]
    assert own_words.mentioned("A red car and two buses beside a Washing Machine.", vocabulary) == {
        "car", "bus", "washing machine"}
    assert own_words.mentioned("A cart, a scar and a vegetable.", vocabulary) == set()


def test_naming_counts_by_hand():
    # Named: car, dog | car | nothing. In the pictures: car | dog | car, sofa.
    result = own_words.naming(["a car and a dog", "a car", "nothing"], [["car"], ["dog"], ["car", "sofa"]], [""] * 3)
    said, found = result["said"], result["found"]
    assert (said["n"], said["acc"]) == (3, pytest.approx(1 / 3))
    # In the two other pictures: car in one, dog in one | car in both.
    assert said["chance"] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert (found["n"], found["acc"]) == (4, pytest.approx(1 / 4))
    # By the two other captions: car by one | dog by one | car by both, sofa by none.
    assert found["chance"] == pytest.approx((1 / 2 + 1 / 2 + 1 + 0) / 4)


def test_naming_is_not_paid_for_telling_rooms_from_streets():
    # Every caption lists what its setting may hold.
    result = own_words.naming(["sofa, bed"] * 2 + ["car, bus"] * 2, [["sofa"], ["bed"], ["car"], ["bus"]],
                              ["in", "in", "out", "out"])
    assert result["said"]["acc"] == pytest.approx(result["said"]["chance"]) == 0.5
    assert result["found"]["acc"] == result["found"]["chance"] == 1.0


class Parrot:
    """An engine that repeats what it is asked."""

    def generate(self, prompts, **_):
        return [f"{prompt.image_id}: {prompt.question or 'caption'}" for prompt in prompts]


def test_own_words_ask_what_they_say_they_ask():
    records = tiny_records("test", 3)
    entries = own_words.describe(Parrot(), records, asked=2)
    assert [entry["caption"] for entry in entries] == [f"test-{k}: caption" for k in range(3)]
    assert entries[0]["reference"] == "a red wall"
    assert entries[1]["question"] == "How far is the cat?" and entries[1]["expected"] == "2 metres"
    assert entries[1]["answer"] == "test-1: How far is the cat?" and "question" not in entries[2]


def test_report_shows_words_scores_and_loss(tmp_path):
    records = tiny_records("test", 4)
    write_dataset(tmp_path / "scenes", "hand", {"test": records})
    (tmp_path / "run" / "align").mkdir(parents=True)
    (tmp_path / "run" / "align" / "metrics.jsonl").write_text("".join(
        json.dumps({"step": k, "loss": 4.0 / k, "loss/captions": 5.0 / k}) + "\n" for k in (1, 2, 3)))
    entries = own_words.describe(Parrot(), records, asked=2)
    entries[0]["caption"] = "<script>"
    (tmp_path / "answers.json").write_text(json.dumps({"scenes": entries, "photographs": []}))
    cell = {"acc": 0.625, "n": 8, "low": 0.3, "high": 0.8, "chance": 0.5, "parse_failures": 0}
    scores = {"overall": cell, "macro": 0.625, "by_type": {"higher": cell}, "by_group": {"relation": cell}}
    summary = {"minutes": 1.0, "seed": 0, "steps": 3, "scenes": 4, "clip": "random", "photographs": {},
               "naming": {"said": cell, "found": cell}, "scores": {"scenes": scores}, "blind": {"scenes": scores}}
    page = real_report.write(tmp_path, summary).read_text()
    assert page.count("<article") == 4 and page.count("data:image/jpeg") == 4
    assert "&lt;script&gt;" in page and "<script>" not in page
    assert "62.5" in page and "30.0–80.0" in page and "random weights" in page and "captions" in page


@pytest.mark.skipif(not all((folder() / ASSETS[name].file).is_file() for name in real.NEEDED),
                    reason="fetched packages are absent (python -m launch.fetch_assets, $SPATIALLLM_ASSETS)")
@pytest.mark.slow
def test_the_whole_command_on_real_weights(tmp_path):
    # A process of its own: one device, as a user has it, not this suite's eight.
    command = [sys.executable, "-m", "launch.real", "--assets", str(folder().absolute()),
               "--out", str(tmp_path / "out"),
               "--steps", "8", "--scenes", "32", "--test-scenes", "4", "--clip", "random", "--json"]

    def run():
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True,
                              check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    summary = run()
    lines = read_lines(tmp_path / "out" / "run" / "align" / "metrics.jsonl")
    assert lines[-1]["step"] == 8 and lines[-1]["skipped"] == 0
    assert set(summary["scores"]) == set(summary["blind"]) >= {"scenes"}
    assert (tmp_path / "out" / "CREDITS.md").read_text().count(" by ") > 100
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert (tmp_path / "out" / "report.html").stat().st_size > 50_000
    again = run()
    assert {**again, "minutes": 0} == {**summary, "minutes": 0}
