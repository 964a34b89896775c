"""Which questions a split keeps: exact numbers, even answers, no picture twice."""

from collections import Counter

import pytest

from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.selection import Pictures, SelectionConfig, Selector, answer_caps, selection_config
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.balance import answer_key
from spatialllm_jax.questions.types import Question, Region


def question(k, kind, answer, picture="p"):
    """A question of SpatialVQA whose quantities say `answer`; categories differ, so balance by category is idle."""
    regions = (Region("0", (0, 0, 1, 1), f"a{k}"), Region("1", (0, 0, 1, 1), f"b{k}"))
    quantities = {"first": {"height_first": 2.0, "height_second": 1.0},
                  "second": {"height_first": 1.0, "height_second": 2.0},
                  "same": {"angle": 5.0}, "different": {"angle": 120.0}}[answer]
    return Question(f"{picture}/f/{k}", picture, kind, "relation", "s", ((f"Q{k}", "that one"),), regions, "mark",
                    ("that one", "the other"), 0, quantities, 1.0)


def record(k, *questions):
    return ImageRecord(f"image-{k}", b"", 1, 1, questions)


def run(config, records, split="train", pictures=None):
    selector = Selector(split, config, pictures or Pictures(4))
    kept = []
    for item, value in records:
        if selector.full:
            break
        found = selector.take(item, value)
        if found is not None:
            kept.append(found)
    return selector, kept


def test_caps():
    assert answer_caps("facing_camera", 185) == {"front": 47, "left": 46, "back": 46, "right": 46}
    assert answer_caps("higher", 178) == {"first": 89, "second": 89}
    assert answer_caps("depth", 10) == {}


def test_quotas_are_met_exactly_and_evenly():
    stream = [(record(k, question(k, "higher", "first" if k % 5 else "second"),
                      question(k, "same_direction", "same" if k % 3 else "different")), None) for k in range(400)]
    selector, kept = run(SelectionConfig(quotas={"higher": 40, "same_direction": 21}), stream)
    counts = Counter((q.type, answer_key(q)) for r in kept for q in r.questions)
    assert counts == {("higher", "first"): 20, ("higher", "second"): 20, ("same_direction", "same"): 11,
                      ("same_direction", "different"): 10}
    assert selector.full and selector.shortages() == {} and all(r.questions for r in kept)
    assert SelectionConfig(quotas={"higher": 40, "same_direction": 21}).target == 61


def test_types_without_a_quota_are_left_out_and_lacks_are_told():
    stream = [(record(k, question(k, "higher", "first"), question(k, "same_direction", "same")), None)
              for k in range(30)]
    selector, kept = run(SelectionConfig(quotas={"higher": 40}), stream)
    assert not selector.full and {q.type for r in kept for q in r.questions} == {"higher"}
    # Answers are kept even as they come: the second answer never does, so few of the first are taken.
    had = selector.kept
    assert 0 < had <= 8 and selector.shortages() == {"higher: first": 20 - had, "higher: second": 20}
    assert selector.left_out["image: no question to keep"] == 30 - len(kept)


def test_limit():
    stream = [(record(k, question(k, "higher", ("first", "second")[k % 2])), None) for k in range(50)]
    selector, kept = run(SelectionConfig(questions=7), stream)
    assert selector.kept == 7 == sum(len(r.questions) for r in kept) and selector.full


def test_pictures_stay_in_one_split():
    pictures = Pictures(4)
    ask = question(0, "higher", "first")
    _, tested = run(SelectionConfig(), [(record(0, ask), 0b1111)], "test", pictures)
    assert len(tested) == 1
    train = [(record(0, ask), 1 << 40), (record(1, ask), 0b1100), (record(2, ask), 0xFFFF0000),
             (record(2, ask), 0x0F0F0F0F0F), (record(3, ask), 0xFFFF0001)]
    selector, kept = run(SelectionConfig(), train, "train", pictures)
    assert [r.image_id for r in kept] == ["image-2", "image-3"]  # near ones within a split may stay
    assert selector.left_out == {"image: also in test": 1, "image: near-duplicate of one in test": 1,
                                 "image: id is taken": 1}


def test_empty_pictures():
    for keep in (True, False):
        _, kept = run(SelectionConfig(keep_empty=keep), [(record(0), None)])
        assert len(kept) == keep


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"quotas": {"nonsense": 3}}, "nonsense=3"), ({"quotas": {"higher": -1}}, "higher=-1"),
     ({"questions": -1}, "must not be negative"), ({"near_duplicates": 40}, "0 to 16 bits")],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        selection_config("train", settings)
