"""The plain scoring of SpatialVQA, by hand-made engines and predictions."""

import dataclasses

import numpy as np
import pytest

from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.types import SPATIAL_TYPES, Question, Region
from tests.evaluation import plain_spatial_vqa as spatial_vqa
from tests.evaluation.plain_spatial_vqa import Prediction


def question(number, kind="higher", options=("cat", "dog"), answer=0, style="name"):
    regions = tuple(Region(str(k), (0.1 * k, 0.1, 0.1 * k + 0.2, 0.4), name) for k, name in enumerate(options))
    return Question(f"q{number}", f"i{number % 2}", kind, SPATIAL_TYPES[kind], "hand",
                    (("Which one?", options[answer]),), regions, style, options, answer)


class Oracle:
    """An engine that likes a fixed option, and remembers what it was asked."""

    def __init__(self, choice=1, text="the dog"):
        self.choice, self.text, self.prompts = choice, text, []

    def score(self, prompts, **_):
        self.prompts = prompts
        return [np.where(np.arange(len(p.options)) == self.choice, -1.0, -2.0) for p in prompts]

    def generate(self, prompts, **_):
        self.prompts = prompts
        return [self.text for _ in prompts]


def test_scores_by_hand():
    sides = ("front", "left", "back", "right")
    asked = [question(0), question(1, answer=1), question(2, answer=1), question(3, "facing_camera", sides, 2),
             question(4, "closer_to_camera")]
    choices = [0, 1, 0, 2, None]
    tree = spatial_vqa.score([Prediction(q, choice, "") for q, choice in zip(asked, choices, strict=True)])
    assert list(tree["by_type"]) == ["closer_to_camera", "facing_camera", "higher"]   # the benchmark's order
    assert tree["overall"]["acc"] == pytest.approx(3 / 5) and tree["overall"]["n"] == 5
    assert tree["overall"]["chance"] == pytest.approx((4 * 0.5 + 0.25) / 5)
    assert tree["overall"]["parse_failures"] == 1
    assert tree["by_type"]["higher"]["acc"] == pytest.approx(2 / 3)
    assert tree["by_type"]["facing_camera"] | {"low": 0, "high": 0} == {
        "acc": 1.0, "n": 1, "low": 0, "high": 0, "chance": 0.25, "parse_failures": 0}
    assert tree["by_type"]["closer_to_camera"]["acc"] == 0
    assert tree["macro"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert {name: cell["n"] for name, cell in tree["by_group"].items()} == {
        "distance": 1, "orientation": 1, "relation": 3}


def test_a_parse_failure_is_never_right():
    free = dataclasses.replace(question(0), answer_index=None)
    records = [ImageRecord("i0", b"", 4, 4, (free,))]
    with pytest.raises(UserError, match="q0"):
        spatial_vqa.select(records)
    assert not Prediction(question(0), None, "hm").right


def test_select_keeps_only_the_wanted_types_and_says_when_there_are_none():
    records = [ImageRecord("i0", b"picture", 4, 4, (question(0), question(2, "closer_to_object")))]
    assert [q.id for q, _ in spatial_vqa.select(records, ("closer_to_object",))] == ["q2"]
    assert spatial_vqa.select(records)[0][1] == b"picture"
    with pytest.raises(UserError, match="facing_camera"):
        spatial_vqa.select(records, ("facing_camera",))


def test_predict_scores_generates_and_blanks():
    items = [(question(0), b"one"), (question(1, answer=1, style="mark"), b"two")]
    engine = Oracle()
    found = spatial_vqa.predict(engine, items)
    assert [p.choice for p in found] == [1, 1] and [p.right for p in found] == [False, True]
    assert [p.image for p in engine.prompts] == [b"one", b"two"]
    assert engine.prompts[0].marks == () and [r.label for r in engine.prompts[1].marks] == ["0", "1"]
    assert found[0].as_dict()["scores"] == [-2.0, -1.0]
    spatial_vqa.predict(engine, items, blind=True)
    assert all(p.image is None and p.marks == () for p in engine.prompts)
    said = spatial_vqa.predict(Oracle(text="I do not know"), items, mode="generate")
    assert [p.choice for p in said] == [None, None] and said[0].raw == "I do not know"
    with pytest.raises(UserError, match="guess"):
        spatial_vqa.predict(engine, items, mode="guess")
