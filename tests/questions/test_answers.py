"""Every generated answer again, by another route; and what check mode finds when an answer is made wrong."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from corners import Corners, Picture

from spatialllm_jax.questions import wording
from spatialllm_jax.questions.build import generate_questions, question_rng
from spatialllm_jax.questions.config import QuestionConfig
from spatialllm_jax.questions.reading import TWO_WAY, claimed, stated_answer
from spatialllm_jax.questions.recheck import recheck
from spatialllm_jax.questions.types import PROBING_TYPES, SPATIAL_TYPES, VIEW_TYPES
from spatialllm_jax.sources import omni3d

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "real3d" / "real3d.json"
JUDGED = (*SPATIAL_TYPES, *VIEW_TYPES, "left_right")
STYLES = list(itertools.product(("mark", "text", "name"), ("full", "short"), ("which", "choice", "yes_no")))


def check(question, picture):
    """The text's answer is the corners' answer; for a claim, "yes" is said exactly where they agree with it."""
    truth = picture.answer(question)
    if question.form == "yes_no":
        claim = claimed(question)
        assert claim == question.claim, question
        assert question.answer.lower().startswith("yes" if claim == truth else "no"), question
    else:
        assert stated_answer(question) == truth, question
    return truth


@pytest.mark.parametrize(("region", "register", "form"), STYLES)
def test_answers_from_corners(random_scene, region, register, form):
    config = QuestionConfig("t", dict.fromkeys((*JUDGED, *PROBING_TYPES), 6), region_style=region, register=register,
                            forms={form: 1.0}, region_labels="conversation")  # fmt: skip
    seen = set()
    for seed in range(25):
        scene = random_scene(seed)
        picture = Picture.of_scene(scene)
        for question in generate_questions(scene, config, question_rng(0, seed)):
            assert recheck(question, scene) is None, question
            if question.type in JUDGED:
                assert question.form == form
                said = question.answer[0].lower() if form == "yes_no" else ""
                seen.add((question.type, check(question, picture), said))
    answers = {(kind, truth) for kind, truth, _ in seen}
    assert len(answers) == 5 * 2 + 2 * 4 + 4 * 2  # every answer of every type occurs,
    if form == "yes_no":
        assert {(kind, said) for kind, _, said in seen} == set(itertools.product(JUDGED, "yn"))


@pytest.mark.skipif(not PHOTOS.is_file(), reason="no annotated photographs beside the project")
@pytest.mark.parametrize("form", ["which", "choice", "yes_no"])
def test_answers_on_photographs(form):
    """The same on real annotations, from `bbox3D_cam` of the file itself rather than from the scenes read."""
    data = json.loads(PHOTOS.read_text())
    pictures = {}
    for image in data["images"]:
        sides = np.array([image["width"], image["height"]] * 2, float)
        objects = [Corners(a["bbox3D_cam"], np.clip(a["bbox2D_tight"], 0, sides) / sides)
                   for a in data["annotations"] if a["image_id"] == image["id"]]  # fmt: skip
        pictures[Path(image["file_path"]).name] = Picture(objects, np.mean([o.up for o in objects], axis=0))
    config = QuestionConfig("t", dict.fromkeys(JUDGED, 20), forms={form: 1.0})
    kinds = set()
    for k, scene in enumerate(omni3d.load(PHOTOS).scenes):
        picture = pictures[Path(scene.image.path).name]
        for question in generate_questions(scene, config, question_rng(0, k)):
            assert recheck(question, scene) is None
            check(question, picture)
            kinds.add(question.type)
    assert len(kinds) >= 9


def test_probing_numbers_from_corners(random_scene):
    config = QuestionConfig("t", dict.fromkeys(("depth", "distance", "location"), 9))
    for seed in range(10):
        scene = random_scene(seed)
        picture = Picture.of_scene(scene)
        for question in generate_questions(scene, config, question_rng(1, seed)):
            o = picture.pointed(question)
            if question.type == "location":
                expected = o[0].center
                found = [question.quantities[k] for k in "xyz"]
                unit = 0.1 if np.abs(expected).max() < 9.95 else 1.0
                for axis, (less, more) in enumerate((("left", "right"), ("up", "down"))):
                    said = (less if expected[axis] < 0 else more) in question.answer
                    assert said == (abs(expected[axis]) > unit / 2), question.answer
            else:
                expected = np.linalg.norm(o[0].center - (o[1].center if len(o) > 1 else 0))
                found = question.quantities["distance"]
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_numbers_to_choose_from(random_scene):
    """Four options, far apart, of which the right one is nearest to the truth; its rank and letter are spread."""
    config = QuestionConfig("t", dict.fromkeys(PROBING_TYPES, 9), forms={"choice": 1.0}, region_style="name")
    ranks, letters, kinds = [], [], set()
    for seed in range(80):
        for question in generate_questions(random_scene(seed), config, question_rng(1, seed)):
            if question.form != "choice":
                assert question.type in ("elevation", "theta", "location")
                continue
            kinds.add(question.type)
            lines = re.findall(r"^[A-D]\. (\S+) (\w+)", question.text, re.MULTILINE)
            numbers = [float(n) * (0.01 if unit == "centimeters" else 1) for n, unit in lines]
            assert len(numbers) == 4
            truth = question.quantities[question.type if question.type == "azimuth" else "distance"]
            if question.type == "azimuth":
                apart = [abs((a - b + 180) % 360 - 180) for a, b in itertools.combinations(numbers, 2)]
                assert min(apart) >= 45 and abs((numbers[question.answer_index] - truth + 180) % 360 - 180) <= 2.5
            else:
                low = sorted(numbers)
                assert min(b / a for a, b in itertools.pairwise(low)) >= 1.5
                assert abs(numbers[question.answer_index] - truth) <= max(0.05, 0.06 * truth)
                ranks.append(low.index(numbers[question.answer_index]))
            letters.append(question.answer_index)
    assert kinds == {"depth", "distance", "azimuth"}
    for values in (ranks, letters):
        shares = np.bincount(values, minlength=4) / len(values)
        assert shares.min() > 0.18 and shares.max() < 0.32, shares


def every_question(random_scene, types, form, **kwargs):
    config = QuestionConfig("t", dict.fromkeys(types, 3), forms={form: 1.0}, **kwargs)
    for seed in range(6):
        scene = random_scene(seed)
        for question in generate_questions(scene, config, question_rng(0, seed)):
            if question.form == form:
                yield question, scene


@pytest.mark.parametrize("form", ["which", "choice", "yes_no"])
@pytest.mark.parametrize("register", ["full", "short"])
def test_recheck_finds_wrong_answers(random_scene, form, register):
    kinds = set()
    for question, scene in every_question(random_scene, JUDGED, form, register=register):
        kinds.add(question.type)
        wrong = (question.answer_index + 1) % len(question.options)
        turn = (question.text, question.options[wrong])
        assert recheck(dataclasses.replace(question, answer_index=wrong, turns=(turn,))), question
        assert recheck(dataclasses.replace(question, turns=(turn,))) == "the answer is not the right option"
        moved = {k: v + 40 for k, v in question.quantities.items()}
        assert question.type == "left_right" or recheck(dataclasses.replace(question, quantities=moved), scene)
    assert kinds == set(JUDGED)


@pytest.mark.parametrize("register", ["full", "short"])
def test_recheck_finds_twisted_claims(random_scene, register):
    """Another claim in the text, and "yes" and "no" before each other's sentence."""
    count = 0
    for question, _ in every_question(random_scene, JUDGED, "yes_no", register=register):
        text = question.text
        if question.type in TWO_WAY:
            a, b = (f"[{r.label}]" for r in question.regions[-2:])
            twisted = text.replace(a, "[#]").replace(b, a).replace("[#]", b)
        else:
            words = {"left": "right", "right": "left", "front": "back", "back": "front", "behind": "in front of",
                     "the same direction": "different directions", "different directions": "the same direction",
                     "above": "below", "below": "above", "in front of": "behind"}  # fmt: skip
            if question.type.startswith("view_front"):
                words = {"in front of": "behind", "behind": "in front of"}
            elif question.type == "on_which_side" and "in front of" in text:
                words = {"in front of": "behind"}
            found = [w for w in words if re.search(rf"\b{w}\b", text)]
            twisted = re.sub(rf"\b{found[0]}\b", words[found[0]], text)
        assert twisted != text
        assert "claims" in recheck(dataclasses.replace(question, turns=((twisted, question.answer),))), twisted
        if register == "full":
            swapped = tuple(o.replace("Yes,", "#").replace("No,", "Yes,").replace("#", "No,") for o in question.options)
            wrong = dataclasses.replace(question, options=swapped, turns=((text, swapped[question.answer_index]),))
            assert recheck(wrong), wrong
        else:
            swapped = question.options[::-1]
            assert recheck(dataclasses.replace(question, options=swapped,
                                               turns=((text, swapped[question.answer_index]),)))  # fmt: skip
        count += 1
    assert count > 60


def test_recheck_finds_swapped_objects_and_lines(random_scene):
    """Open questions with the two objects exchanged in the text, and choices whose lines are exchanged."""
    for question, _ in every_question(random_scene, (*VIEW_TYPES, "on_which_side", "left_right"), "which"):
        swapped = question.text.replace("[0]", "[#]").replace("[1]", "[0]").replace("[#]", "[1]")
        answer = question.answer.replace("[0]", "[#]").replace("[1]", "[0]").replace("[#]", "[1]")
        twisted = dataclasses.replace(question, turns=((swapped, answer),), options=())
        assert recheck(dataclasses.replace(twisted, answer_index=None)), twisted
    for question, _ in every_question(random_scene, JUDGED, "choice"):
        lines = question.text.split("\n")
        lines[1], lines[2] = lines[1][:3] + lines[2][3:], lines[2][:3] + lines[1][3:]
        changed = question.answer in "AB"
        assert bool(recheck(dataclasses.replace(question, turns=(("\n".join(lines), question.answer),)))) == changed
    for question, _ in every_question(random_scene, ("where", "count"), "which"):
        twisted = "seven" if question.type == "count" else "In the top left."
        if question.answer.lower() != twisted.lower() and "top left" not in question.answer:
            wrong = dataclasses.replace(question, turns=((question.text, twisted),), options=(), answer_index=None)
            assert recheck(wrong)


def test_recheck_finds_wrong_names_and_colours(random_scene):
    names = {"categories": ("car", "dog", "bed", "chair", "lamp"), "colours": ("red", "blue", "white", "pink")}
    count = 0
    for form in ("which", "choice"):
        for question, scene in every_question(random_scene, ("what", "colour"), form, **names):
            if question.regions and question.answer_index is not None:
                assert recheck(question, scene) is None
                wrong = (question.answer_index + 1) % len(question.options)
                turn = (question.text, question.options[wrong])
                assert recheck(dataclasses.replace(question, answer_index=wrong, turns=(turn,)), scene), turn
                count += 1
    assert count > 20


def test_recheck_reads_comparatives(random_scene):
    """A wording that asks for the opposite ("farther", "lower") is found, whatever the answer says."""
    opposites = {"closer": "farther", "nearer": "farther", "shorter": "longer", "smaller": "larger", "higher": "lower"}
    count = 0
    kinds = ("closer_to_camera", "closer_to_object", "higher")
    for question, _ in every_question(random_scene, kinds, "which", register="short"):
        twisted = re.sub("|".join(opposites), lambda found: opposites[found[0]], question.text)
        assert twisted != question.text and recheck(dataclasses.replace(question, turns=((twisted, question.answer),)))
        count += 1
    assert count > 15


@pytest.mark.parametrize("table", ["FULL", "SHORT", "FULL_CLAIMS", "SHORT_CLAIMS"])
def test_every_wording_is_read_back(random_scene, monkeypatch, table):
    """Each sentence of each table, in every region style, says what the numbers say."""
    templates = getattr(wording, table)
    form = "yes_no" if "CLAIMS" in table else "which"
    common = {"register": "full" if "FULL" in table else "short", "forms": {form: 1.0},
              "categories": ("car", "dog", "lamp"), "colours": ("red", "blue")}  # fmt: skip
    for kind, wordings in list(templates.items()):
        assert len(set(wordings)) == len(wordings)
        for template in wordings:
            monkeypatch.setitem(templates, kind, (template,))
            count = 0
            for region, seed in itertools.product(("mark", "text", "name"), range(2)):
                config = QuestionConfig("t", {kind: 2}, region_style=region, **common)
                scene = random_scene(seed)
                for question in generate_questions(scene, config, question_rng(0, seed)):
                    assert recheck(question, scene) is None, question
                    assert question.form == form and "{" not in question.text + question.answer
                    assert question.text[-1] in "?." and "  " not in question.text + question.answer
                    count += 1
            assert count > 2, template
        monkeypatch.undo()
