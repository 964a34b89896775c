"""The report of a hand-made quickstart folder, read back with an HTML parser."""

import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from launch import report as command
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.storage import write_dataset
from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation import report
from spatialllm_jax.evaluation.report_parts import PAPER
from spatialllm_jax.questions.types import SPATIAL_TYPES, Question, Region
from spatialllm_jax.scene.serialize import scene_to_json
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage
from tests.evaluation import plain_spatial_vqa as spatial_vqa
from tests.evaluation.plain_spatial_vqa import Prediction

ROWS = {"llama3": "without 3D data", "align_in166k": "with 3D data"}
QUANTITIES = {"distance_first": 2.5, "distance_second": 3.25, "angle_first": 10.0, "angle_second": 90.0,
              "height_first": 1.0, "height_second": 0.5, "angle": 12.0, "bearing": 5.0, "elevation": 1.0}
SOURCES = {"align": ("boxes", "captions", "probing"), "tune": ("boxes", "general", "spatial")}
_VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Counts tags, and notices tags that are not closed in order or point outside the page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.cards, self.words = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        for name in ("src", "href"):
            assert found.get(name, "#").startswith(("data:", "#")), found
        if tag == "article":
            self.cards.append(found)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).replace("\u202f", " ").split())


def record(index):
    rng = np.random.default_rng(index)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(buffer, "PNG")
    camera = Camera(64, 48, np.array([[60.0, 0, 32], [0, 60.0, 24], [0, 0, 1]]))
    objects = tuple(
        Object3D(name, name, Box3D(np.array([x, 0.2, 4.0]), np.ones(3), np.eye(3)), np.array(box), True)
        for name, x, box in (("cat", -0.8, [10.0, 15, 30, 35]), ("dog", 0.8, [34.0, 15, 54, 35])))
    scene = Scene(SceneImage(f"i{index}"), camera, objects, True, "hand")
    regions = (Region("0", (10 / 64, 15 / 48, 30 / 64, 35 / 48), "cat"),
               Region("1", (34 / 64, 15 / 48, 54 / 64, 35 / 48), "dog"))
    questions = tuple(
        Question(f"q{index}-{kind}", f"i{index}", kind, group, "hand", ((f"<{kind}> & which?", "cat"),), regions,
                 "name", ("cat", "dog"), 0, QUANTITIES, 0.75)
        for kind, group in SPATIAL_TYPES.items())
    return ImageRecord(f"i{index}", buffer.getvalue(), 64, 48, questions, scene_to_json(scene))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole quickstart folder with made-up answers."""
    out = tmp_path_factory.mktemp("quickstart")
    records = [record(index) for index in range(10)]
    write_dataset(out / "data", "hand", {"test": records})
    trees = {}
    for seed, row in enumerate([*ROWS, "blind"]):
        rng = np.random.default_rng(seed)
        found = []
        for question in (q for r in records for q in r.questions):
            choice = int(rng.random() > (0.9 if row == "align_in166k" else 0.4))
            found.append(Prediction(question, choice, question.options[choice], (-1.0 - choice, -2.0 + choice)))
        trees[row] = spatial_vqa.score(found)
        if row in ROWS:
            (out / "evaluation" / row).mkdir(parents=True)
            (out / "evaluation" / row / "predictions.jsonl").write_text(
                "".join(json.dumps(p.as_dict()) + "\n" for p in found))
            (out / "evaluation" / row / "scores.json").write_text(json.dumps({"scores": trees[row]}))
            stages = {"align": {"steps": 40}, "tune": {"steps": 60}}
            (out / "rows" / row).mkdir(parents=True)
            (out / "rows" / row / "config.json").write_text(json.dumps({"stages": stages}))
            for name, stage in stages.items():
                (out / "rows" / row / name).mkdir()
                lines = [json.dumps({"step": step, "loss": 100 / step, "accuracy": 0.5,
                                     **{f"accuracy/{source}": 0.5 for source in SOURCES[name]}})
                         for step in range(10, stage["steps"] + 1, 10)]
                (out / "rows" / row / name / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 7', ""]))
    generated = json.loads(json.dumps(trees["align_in166k"]))
    generated["overall"]["parse_failures"] = 3
    (out / "evaluation" / "generated").mkdir()
    (out / "evaluation" / "generated" / "scores.json").write_text(json.dumps({"scores": generated}))
    (out / "clock.json").write_text(json.dumps({"scenes": 90.0, "evaluation": 30.0}))
    (out / "quickstart.json").write_text(json.dumps({"budget": 1.0, "seed": 3, "dinov2": "auto"}))
    summary = {"minutes": 2.0, "rows": {row: trees[row] for row in ROWS}, "blind": trees["blind"], "seed": 3,
               "budget": 1.0}
    return out, summary


def test_whole_report(folder):
    out, summary = folder
    path = report.write(out, summary, ROWS)
    assert path == out / "report.html" and path.stat().st_size < 6 << 20
    page = Page(path.read_text())
    for tree in (*summary["rows"].values(), summary["blind"]):
        assert f"{100 * tree['overall']['acc']:.1f} %" in page.text
        for cell in tree["by_type"].values():
            assert f"{100 * cell['low']:.1f}–{100 * cell['high']:.1f}" in page.text
    for row in ROWS:
        for value in PAPER[row]:
            assert f"{value:.1f}" in page.text
    assert "full size, the paper's test" in page.text
    assert "3 answers" in page.text and "1.5 min" in page.text and "30 s" in page.text
    assert "100 steps" in page.text                               # both stages on one axis
    keys = [re.findall(r"</i>([^<]*)<", key) for key in re.findall(r"<div class='key'>(.*?)</div>", path.read_text())]
    assert keys.count(["boxes", "captions", "probing", "general", "spatial"]) == 2   # a colour of its own for each
    assert "<closer_to_camera> & which?" in page.text             # escaped on the way in
    assert "distance of cat 2.50 m · distance of dog 3.25 m · angle of cat 10.0° ·" in page.text
    assert "bearing 5.0° · elevation 1.0° · margin 0.75 m" in page.text


def test_samples_cover_every_type_and_both_outcomes(folder):
    out, summary = folder
    page = Page(report.write(out, summary, ROWS).read_text())
    lines = [json.loads(line) for line in (out / "evaluation/align_in166k/predictions.jsonl").read_text().splitlines()]
    outcomes = {(line["type"], "right" if line["right"] else "wrong") for line in lines}
    shown = {(card["data-type"], card["data-verdict"].split()[0]) for card in page.cards}
    assert shown == outcomes and {kind for kind, _ in shown} == set(SPATIAL_TYPES)
    # Every card has the picture, two boxes of twelve edges and one arrow each, and one bar per row and option.
    assert sum(tag == "img" for tag, _ in page.tags) == len(page.cards)
    assert sum(tag == "line" and "stroke" in found for tag, found in page.tags) == len(page.cards) * 2 * 13


def test_option_bars_are_the_softmax_of_the_scores(folder):
    out, summary = folder
    text = report.write(out, summary, ROWS).read_text()
    # The made-up scores differ by one either way, and each card shows two options of two rows.
    share = round(100 / (1 + np.exp(-1.0)))
    cards = text.count("<article")
    assert text.count(f"<s>{share} %</s>") == text.count(f"<s>{100 - share} %</s>") == 2 * cards


def test_missing_parts_are_left_out(folder, tmp_path):
    _, summary = folder
    page = Page(report.write(tmp_path, {"rows": {"llama3": summary["rows"]["llama3"]}}, ROWS).read_text())
    assert not page.cards and "Learning curves" not in page.text and "Where the time went" not in page.text
    assert "without 3D data" in page.text and "pictures blanked" not in page.text
    with pytest.raises(UserError, match="llama3"):
        report.write(tmp_path, {"rows": {}}, ROWS)


def test_command_puts_a_summary_together(folder, tmp_path):
    out, summary = folder
    assert command.main([str(out)]) == {"report": str(out / "report.html")}
    found = command.summary_of(out)
    assert found["rows"] == summary["rows"] and found["minutes"] == 2.0 and found["seed"] == 3
    with pytest.raises(UserError, match="not a folder"):
        command.main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="not the folder of a quickstart"):
        command.main([str(tmp_path)])
    (tmp_path / "quickstart.json").write_text("{}")
    with pytest.raises(UserError, match="no scores yet"):
        command.main([str(tmp_path)])
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary.json"):
        command.main([str(tmp_path)])


def test_headline_does_not_claim_more_than_the_intervals(folder, tmp_path):
    _, summary = folder
    tree = summary["rows"]["llama3"]
    same = {"rows": {"llama3": tree, "align_in166k": tree}, "blind": dataclasses.replace(
        spatial_vqa.accuracy([False], [0.5])).as_dict()}
    same["blind"] = {"overall": same["blind"], "by_type": {}, "macro": 0.0, "by_group": {}}
    text = Page(report.write(tmp_path, same, ROWS).read_text()).text
    assert "lies above those of all others" not in text and "overlaps with" in text
