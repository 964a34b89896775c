"""Every generated answer again, by another route: from raw corners, without the library's predicates."""

import numpy as np
import pytest

from spatialllm_jax.questions.build import generate_questions, question_rng
from spatialllm_jax.questions.config import QuestionConfig
from spatialllm_jax.questions.recheck import recheck, stated_answer
from spatialllm_jax.questions.types import PROBING_TYPES, SPATIAL_TYPES

TYPES = dict.fromkeys((*SPATIAL_TYPES, *PROBING_TYPES), 6)
STYLES = [
    (region, register, answer)
    for region in ("mark", "text", "name")
    for register in ("full", "short")
    for answer in ("text", "letter")
]


class Corners:
    """An object as its eight corners alone (Omni3D's order): faces by index, nothing by rotation."""

    def __init__(self, obj):
        signs = [(-1, -1, -1), (1, -1, -1), (1, 1, -1), (-1, 1, -1), (-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)]
        axes = [obj.box.rotation[:, k] * obj.box.size[k] / 2 for k in range(3)]
        self.points = np.array([obj.box.center + sum(s * a for s, a in zip(sign, axes, strict=True)) for sign in signs])
        self.center = self.points.mean(0)
        self.front = self.face(1, 2, 5, 6)
        self.left = self.face(4, 5, 6, 7)

    def face(self, *indices):
        """Unit vector from the centre to the centre of a face."""
        vector = self.points[list(indices)].mean(0) - self.points.mean(0)
        return vector / np.linalg.norm(vector)

    def side_of(self, point):
        """The face whose direction is nearest to that of a point, among the four upright ones."""
        direction = point - self.center
        scores = {"front": self.front, "back": -self.front, "left": self.left, "right": -self.left}
        return max(scores, key=lambda side: scores[side] @ direction)


def regions_to_objects(question, scene):
    sides = np.array([scene.camera.width, scene.camera.height] * 2)
    found = []
    for region in question.regions:
        gaps = [np.abs(o.bbox2d - np.array(region.bbox) * sides).max() for o in scene.objects]
        assert min(gaps) < 0.1
        found.append(Corners(scene.objects[int(np.argmin(gaps))]))
    return found


def derive(question, scene):
    """The right answer from corners, as "first", a side, or "same"."""
    o = regions_to_objects(question, scene)
    origin = np.zeros(3)
    if question.type == "closer_to_camera":
        return "first" if np.linalg.norm(o[0].center) < np.linalg.norm(o[1].center) else "second"
    if question.type == "closer_to_object":
        near = [np.linalg.norm(x.center - o[0].center) for x in o[1:]]
        return "first" if near[0] < near[1] else "second"
    if question.type == "facing_camera":
        return o[0].side_of(origin)
    if question.type == "on_which_side":
        return o[0].side_of(o[1].center)
    if question.type == "facing_object":
        ahead = [(x.center - o[0].center) / np.linalg.norm(x.center - o[0].center) @ o[0].front for x in o[1:]]
        return "first" if ahead[0] > ahead[1] else "second"
    if question.type == "same_direction":
        return "same" if o[0].front @ o[1].front > 0.5 else "different"
    assert question.type == "higher"
    drop = [x.center @ scene.camera.gravity for x in o]
    return "first" if drop[0] < drop[1] else "second"


@pytest.mark.parametrize(("region", "register", "answer"), STYLES)
def test_answers_from_corners(random_scene, region, register, answer):
    config = QuestionConfig("t", TYPES, region_style=region, register=register, answer_style=answer)
    seen = set()
    for seed in range(25):
        scene = random_scene(seed)
        for question in generate_questions(scene, config, question_rng(0, seed)):
            assert recheck(question, scene) is None
            if question.type in SPATIAL_TYPES:
                seen.add((question.type, derive(question, scene)))
                assert stated_answer(question) == derive(question, scene), question
    assert {kind for kind, _ in seen} == set(SPATIAL_TYPES)
    assert len(seen) == 5 * 2 + 2 * 4  # every answer of every type occurs


def test_probing_numbers_from_corners(random_scene):
    config = QuestionConfig("t", dict.fromkeys(("depth", "distance", "location"), 9))
    for seed in range(10):
        scene = random_scene(seed)
        for question in generate_questions(scene, config, question_rng(1, seed)):
            o = regions_to_objects(question, scene)
            if question.type == "location":
                expected = o[0].center
                found = [question.quantities[k] for k in "xyz"]
                assert ("left" if expected[0] < 0 else "right") in question.answer
            else:
                expected = np.linalg.norm(o[0].center - (o[1].center if len(o) > 1 else 0))
                found = question.quantities["distance"]
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_recheck_finds_tampering(random_scene):
    import dataclasses

    scene = random_scene(1)
    config = QuestionConfig("t", dict.fromkeys(SPATIAL_TYPES, 4), answer_style="letter")
    questions = generate_questions(scene, config, question_rng(0, 1))
    assert len(questions) > 8
    for question in questions:
        wrong = (question.answer_index + 1) % len(question.options)
        turn = (question.text, question.options[wrong])
        assert recheck(dataclasses.replace(question, answer_index=wrong, turns=(turn,)))
        assert recheck(dataclasses.replace(question, turns=(turn,))) == "the answer is not the right option"
        moved = {k: v + 40 for k, v in question.quantities.items()}
        assert recheck(dataclasses.replace(question, quantities=moved), scene)
