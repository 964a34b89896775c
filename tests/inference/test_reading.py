"""Questions side by side: which begin alike, and where their tokens go."""

import itertools

import numpy as np
import pytest

from spatialllm_jax.data.chat import Encoded
from spatialllm_jax.inference.reading import families, laid_out, members, read, side_by_side
from spatialllm_jax.models.attention import allowed, self_mask


def question(tokens, index=None):
    zeros = np.zeros(len(tokens), np.int32)
    return Encoded(np.array(tokens, np.int32), zeros > 0, zeros, np.arange(len(tokens)),
                   zeros - 1 if index is None else np.array(index, np.int32), ())


def random_questions(seed, most=7):
    """Short ones of two words: many begin alike."""
    rng = np.random.default_rng(seed)
    return [question(rng.integers(1, 3, rng.integers(1, 6))) for _ in range(rng.integers(1, most))]


def partitions(items):
    """All ways to divide items into groups."""
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for k in range(len(rest)):
            yield [*rest[:k], [items[0], *rest[k]], *rest[k + 1:]]


def cost(group):
    """Tokens of a group whose longest common beginning is read once; each has a token of its own."""
    if len(group) == 1:
        return group[0].length
    spelled = [one.tokens.tolist() for one in group]
    alike = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*spelled, strict=False)))
    shared = min(alike, min(map(len, spelled)) - 1)
    return sum(map(len, spelled)) - (len(group) - 1) * shared


@pytest.mark.parametrize("seed", range(20))
def test_as_few_tokens_as_can_be(seed):
    asked = random_questions(seed)
    found = families(asked)
    assert sorted(members(found)) == list(range(len(asked)))
    assert [family.length for family in found] == [cost([asked[k] for k in family.members]) for family in found]
    assert read(found) == min(sum(map(cost, division)) for division in partitions(asked))


def test_visual_tokens_are_part_of_what_is_alike():
    same, other = question([0, 5, 6], [0, -1, -1]), question([0, 5, 7], [1, -1, -1])
    assert [family.shared for family in families([same, same])] == [2]
    assert [family.shared for family in families([same, other])] == [0, 0]


@pytest.mark.parametrize("seed", range(8))
def test_every_question_stands_in_its_row(seed):
    """Following `source` gives its tokens back; each sees what comes before it in its own question, and no more."""
    asked = random_questions(seed, most=12)
    for row in (rows := side_by_side(families(asked), asked, 11, 5)):
        laid = laid_out(asked, row, 11, 5, 6)
        seen = np.asarray(allowed(self_mask((laid.branch > 0)[None].astype(int), laid.branch[None])))[0]
        owners = members(row)
        assert read(row) <= 11 and len(owners) <= 5 and (laid.branch > 0).sum() == read(row)
        for place, k in enumerate(owners):
            length = laid.lengths[place]
            own = laid.source[place, :length]
            assert laid.tokens[own].tolist() == asked[k].tokens.tolist()
            assert laid.offset[own].tolist() == list(range(length))
            for end, token in enumerate(own):
                assert set(np.flatnonzero(seen[token])) == set(own[:end + 1])
    assert sorted(k for row in rows for k in members(row)) == list(range(len(asked)))


def test_a_family_too_large_for_a_row_is_divided():
    asked = [question([1, 2, 3, k]) for k in range(10)]
    for width, beside, expected in ((100, 16, [13]), (8, 16, [8, 8]), (100, 4, [6, 6, 10])):
        rows = side_by_side(families(asked), asked, width, beside)
        assert sorted(map(read, rows)) == expected and all(len(members(row)) <= beside for row in rows)
