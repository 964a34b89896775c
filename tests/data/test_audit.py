"""The audit page and launch.inspect: filters, histograms of the whole split, judging by keyboard, check mode."""

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch import inspect
from spatialllm_jax.data.audit_tally import Tally
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.storage import write_dataset
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.build import generate_questions, question_rng
from spatialllm_jax.questions.config import QuestionConfig
from spatialllm_jax.questions.types import SPATIAL_TYPES, VIEW_TYPES
from spatialllm_jax.scene.serialize import scene_to_json
from spatialllm_jax.scene.types import Camera, Scene, SceneImage
from tests.data.scenes import UP, random_objects

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CONFIG = QuestionConfig("ft", dict.fromkeys((*SPATIAL_TYPES, *VIEW_TYPES, "depth"), 2),
                        forms={"which": 1.0, "choice": 1.0, "yes_no": 1.0}, region_labels="conversation")  # fmt: skip


def record(seed):
    """A picture of four cars and their questions."""
    rng = np.random.default_rng(seed)
    camera = Camera(160, 120, np.array([[140.0, 0, 80], [0, 140, 60], [0, 0, 1]]), -UP)
    objects = random_objects(camera, rng, 4, lambda: "car")
    scene = Scene(SceneImage(f"im{seed}"), camera, objects, True, f"source{seed % 2}")
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (120, 160, 3), dtype=np.uint8)).save(buffer, "PNG")
    questions = tuple(generate_questions(scene, CONFIG, question_rng(0, seed)))
    return ImageRecord(scene.image.id, buffer.getvalue(), 160, 120, questions, scene_to_json(scene))


@pytest.fixture(scope="module")
def records():
    return [record(seed) for seed in range(30)]


@pytest.fixture(scope="module")
def dataset(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit") / "d"
    write_dataset(folder, "hand", {"train": records[:20], "test": records[20:]})
    return folder


@pytest.fixture(scope="module")
def broken(records, tmp_path_factory):
    """The same with one wrong answer in the second split."""
    folder = tmp_path_factory.mktemp("broken") / "d"
    first = records[20]
    k = next(k for k, q in enumerate(first.questions) if q.type == "higher")
    wrong = first.questions[k]
    turn = (wrong.text, wrong.options[1 - wrong.answer_index])
    wrong = dataclasses.replace(wrong, answer_index=1 - wrong.answer_index, turns=(turn,))
    questions = (*first.questions[:k], wrong, *first.questions[k + 1:])
    changed = dataclasses.replace(first, questions=questions)
    write_dataset(folder, "hand", {"train": records[:20], "test": [changed, *records[21:]]})
    return folder, wrong.id


def figures(text):
    """Title -> sum of its bars' numbers."""
    found = re.findall(r"<figcaption>(.*?)</figcaption>(.*?)</figure>", text)
    return {title: sum(int(n) for n in re.findall(r"class='n'>(\d+)<", body)) for title, body in found}


def test_histograms_count_the_whole_split(dataset, records, tmp_path):
    """However few questions are shown, the histograms hold all of the split."""
    inspect.main([str(dataset), "--out", str(tmp_path / "p.html"), "--limit", "5"])
    text = (tmp_path / "p.html").read_text()
    assert text.count("<article ") == 5 and 'src="http' not in text and "href=\"http" not in text
    charts = figures(text)
    questions = [q for r in records[:20] for q in r.questions]
    assert charts["forms"] == len(questions)
    for kind in SPATIAL_TYPES:
        assert charts[f"answers: {kind}"] == sum(q.type == kind for q in questions)
    assert charts["claims: higher"] == sum(q.type == "higher" and q.form == "yes_no" for q in questions) > 0
    assert charts["letters: higher"] == sum(q.type == "higher" and q.form == "choice" for q in questions) > 0
    assert charts["depth of all objects (z, m)"] == charts["azimuth of all objects with a front (°)"] == 80
    assert charts["angle: same_direction (°)"] == charts["margin: same_direction (°)"] > 0
    assert charts["bearing: facing_camera (°)"] > 0 and charts["margin: view_left_right (m)"] > 0


def test_a_tally_does_not_grow(records):
    """Ten times the records: more in the bars, no more bars than before."""
    def bars(times):
        tally = Tally()
        for _ in range(times):
            for r in records:
                tally.add(r)
        return len(re.findall("<rect", tally.charts())), tally.questions

    assert bars(1)[0] == bars(3)[0] and bars(3)[1] == 3 * bars(1)[1]


def test_bins_hold_what_they_say(records):
    tally = Tally()
    for r in records:
        tally.add(r)
    body = re.search(r"<figcaption>angle: same_direction .*?</figure>", tally.charts())[0]
    counts = [int(n) for n in re.findall(r"class='n'>(\d+)<", body)]
    starts = [float(x) for x in re.findall(r"class='l'>([^<]+)<", body)]
    angles = [q.quantities["angle"] for r in records for q in r.questions if q.type == "same_direction"]
    assert dict(zip(starts, counts, strict=True)) == {
        start: sum(start <= a < start + 15 for a in angles) for start in sorted({a // 15 * 15 for a in angles})}


def test_filters(dataset, tmp_path):
    page = tmp_path / "p.html"
    result = inspect.main([str(dataset), "--out", str(page), "--types", "higher,depth", "--forms", "which,yes_no",
                           "--sources", "source1"])  # fmt: skip
    cards = re.findall(r"data-type='(\w+)' data-form='(\w+)' data-source='(\w+)'", page.read_text())
    assert len(cards) == result["questions"] > 4
    assert {c[0] for c in cards} == {"higher", "depth"} and {c[1] for c in cards} == {"which", "yes_no"}
    assert {c[2] for c in cards} == {"source1"}
    with pytest.raises(UserError, match="--sources nowhere"):
        inspect.main([str(dataset), "--out", str(page), "--sources", "nowhere"])
    with pytest.raises(UserError, match="--out is missing"):
        inspect.main([str(dataset)])


def test_the_draw_is_even_and_repeatable(dataset, tmp_path):
    pages = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        inspect.main([str(dataset), "--out", str(tmp_path / name), "--limit", "60", "--seed", seed])
        pages.append((tmp_path / name).read_text())
    assert pages[0] == pages[1] != pages[2]
    kinds = re.findall(r"data-type='(\w+)' data-form", pages[0])
    assert kinds == sorted(kinds)  # a row of the same type is quicker to judge
    counts = [kinds.count(kind) for kind in set(kinds)]
    assert len(counts) == 11 and max(counts) - min(counts) <= 5


def test_check_recomputes_every_split(dataset, broken, records, capsys):
    result = inspect.main([str(dataset), "--check"])
    assert result["checked"] == sum(len(r.questions) for r in records) and result["wrong"] == 0
    assert set(result["splits"]) == {"train", "test"}
    out = capsys.readouterr().out
    assert f"higher{result['splits']['train']['types']['higher']:>23}" in out
    folder, key = broken
    with pytest.raises(SystemExit) as stop:
        inspect.main([str(folder), "--check"])
    out = capsys.readouterr().out
    assert stop.value.code == 1 and key in out and "1 wrong" in out
    assert inspect.main([str(folder), "--check", "--split", "train"])["wrong"] == 0


def test_exit_codes(broken, tmp_path):
    """From the shell: 1 with the JSON line for --check, 0 for a page, on which the disagreement is flagged."""
    folder, _ = broken
    command = [sys.executable, "-m", "launch.inspect", str(folder), "--json"]
    found = subprocess.run([*command, "--check"], cwd=ROOT, capture_output=True, text=True)
    result = json.loads(found.stdout.splitlines()[-1])
    assert found.returncode == 1 and result["wrong"] == 1 and "Traceback" not in found.stderr
    assert result["splits"]["test"]["wrong_types"] == {"higher": 1}
    page = tmp_path / "p.html"
    found = inspect.main([str(folder), "--split", "test", "--out", str(page), "--limit", "500"])
    assert found["wrong"] == 1 and page.read_text().count("data-bad=1") == 1


_PRESS = """
<script>
const log = [];
function press(key) {
  document.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
  log.push([key, at, by('count').textContent]);
}
'yyn'.split('').forEach(press);
press('u'); press('ArrowLeft'); press('x'); press('ArrowRight');
by('type').value = 'higher'; by('type').dispatchEvent(new Event('change'));
const few = shown.length, visible = cards.filter(c => c.getClientRects().length).length;
press('g');
const grid = cards.filter(c => c.getClientRects().length).length;
by('type').value = ''; by('open').checked = true; by('open').dispatchEvent(new Event('change'));
press('y');
const result = {log, few, visible, grid, left: shown.length, judged: judged(), stored: localStorage.getItem(store)};
document.body.innerHTML = '<pre id="result"></pre>';
by('result').textContent = JSON.stringify(result);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no browser here")
def test_judging_by_keyboard(dataset, tmp_path):
    """In a real browser: y, n and u judge and move on, x takes back, filters and the grid keep their places."""
    page = tmp_path / "p.html"
    inspect.main([str(dataset), "--out", str(page), "--limit", "40"])
    text = page.read_text()
    page.write_text(text.replace("</body>", _PRESS + "</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--dump-dom", page.as_uri()]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = json.loads(re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)[1].replace("&gt;", ">")
                       .replace("&lt;", "<").replace("&amp;", "&"))  # fmt: skip
    positions = [at for _, at, _ in found["log"]]
    assert positions[:7] == [1, 2, 3, 4, 3, 3, 4]
    assert found["log"][3][2] == "4 of 40 judged: 2 right, 1 wrong, 1 unsure"
    assert found["log"][5][2] == "3 of 40 judged: 2 right, 1 wrong, 0 unsure"
    few = text.count("data-type='higher'")
    assert found["few"] == few > 1 and found["visible"] == 1 and found["grid"] == few
    assert found["left"] == 36  # "not judged yet" lets what is judged go
    assert sorted(j["verdict"] for j in found["judged"]) == ["right", "right", "right", "wrong"]
    assert {"id", "type", "form", "source", "question", "answer", "verdict"} == set(found["judged"][0])
    assert len(json.loads(found["stored"])) == 4


def test_judgments_belong_to_what_is_said(dataset, records, tmp_path):
    """A question of the same id with another text does not inherit a judgment; names cannot end the script."""
    from spatialllm_jax.data.audit import audit_page

    first = records[0]
    nasty = dataclasses.replace(first, image_id="</script><b>'\"")
    page = audit_page("<title>", [(nasty, first.questions[0])], Tally())
    assert page.count("</script>") == 1 and page.count("<b>") == 0 and "&lt;title&gt;" in page
    other = dataclasses.replace(first.questions[0], turns=(("Another question?", first.questions[0].answer),))
    keys = [re.search(r"data-key='(\w+)'", audit_page("t", [(first, q)], Tally()))[1]
            for q in (first.questions[0], first.questions[0], other)]  # fmt: skip
    assert keys[0] == keys[1] != keys[2]
