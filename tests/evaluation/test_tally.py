"""Scores from hand-made lines: averages, clusters, variants of a question."""

import pytest

from spatialllm_jax.evaluation.tally import clusters_of, tally


def line(k, right, **changes):
    return {"id": f"q{k}", "image": f"i{k}", "type": "higher", "group": "relation", "rule": "choice", "raw": "A",
            "options": ["cat", "dog"], "answer": 0 if right else 1, "choice": 0, "right": right, **changes}


def test_pictures_and_mirror_images_are_one_cluster():
    lines = [line(0, True, image="a"), line(1, True, image="a"), line(2, True, image="b", cluster="x"),
             line(3, True, image="b-mirrored", cluster="x"), line(4, True, image="b", cluster="y"), line(5, True)]
    found = clusters_of(lines)
    assert [found.index(name) for name in found] == [0, 0, 2, 2, 2, 5]
    backwards = clusters_of(lines[::-1])[::-1]
    assert [backwards.index(name) for name in backwards] == [0, 0, 2, 2, 2, 5]


def test_questions_that_share_one_of_their_pictures_are_one_cluster():
    lines = [line(0, True, image="a", images=["a", "b"]), line(1, True, image="c", images=["c", "b"]),
             line(2, True, image="b"), line(3, True, image="d", images=["d", "d"])]
    found = clusters_of(lines)
    assert [found.index(name) for name in found] == [0, 0, 0, 3]


def test_averages_by_hand():
    lines = [line(0, True), line(1, False), line(2, True, type="other", options=["a", "b", "c", "d"]),
             line(3, False, choice=None, type="other", group="g"), line(4, None, answer=None)]
    tree = tally(lines)
    assert tree["unscored"] == 1 and tree["overall"]["n"] == 4 and tree["overall"]["parse_failures"] == 1
    assert tree["overall"]["acc"] == 0.5 and tree["macro"] == 0.5 and list(tree["by_type"]) == ["higher", "other"]
    assert tree["overall"]["chance"] == pytest.approx((0.5 + 0.5 + 0.25 + 0.5) / 4)
    assert tree["by_group"]["relation"]["acc"] == pytest.approx(2 / 3) and tree["by_group"]["g"]["clusters"] == 1
    assert tree["bias"] == {"options": {"A": [3, 2], "B": [0, 1]}, "n": 3, "distance": pytest.approx(1 / 3)}
    assert tree["variants"] == {}


def test_a_question_in_variants_is_right_when_all_of_it_is():
    lines = [line(0, True, circle="c"), line(1, True, circle="c"), line(2, True, circle="d"),
             line(3, False, choice=None, circle="d"), line(4, True)]
    cell = tally(lines)["variants"]["circular"]["overall"]
    assert (cell["n"], cell["acc"], cell["parse_failures"]) == (3, pytest.approx(2 / 3), 1)
    assert cell["chance"] == pytest.approx((0.25 + 0.25 + 0.5) / 3)
    assert set(tally(lines)["variants"]) == {"circular"}
