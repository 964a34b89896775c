"""Which questions on a picture are read side by side: in rows, and what several begin with only once.

Rotations of a question's options, and questions behind the same instructions, differ from some token on. What they have
in common is a branch of the row, and the rest of each a branch of that branch (`models.branches`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from spatialllm_jax.data.chat import Encoded
from spatialllm_jax.models.branches import twig


@dataclasses.dataclass(frozen=True)
class Family:
    """Questions that begin alike, or one alone.

    Attributes:
        members: their indices.
        shared: tokens at their beginning that are the same, and read once. Every member has more.
        length: tokens that are read for all of them.
    """

    members: tuple[int, ...]
    shared: int
    length: int


class Row(NamedTuple):
    """Questions side by side, as `lanes.ask` takes them: Q tokens, and of each question, in the order of the families,
    up to P places among them."""

    tokens: Int[np.ndarray, Q]
    offset: Int[np.ndarray, Q]
    branch: Int[np.ndarray, Q]
    image_index: Int[np.ndarray, Q]
    source: Int[np.ndarray, "N P"]
    lengths: Int[np.ndarray, N]


def side_by_side(found: Sequence[Family], questions: Sequence[Encoded], width: int, beside: int) -> list[list[Family]]:
    """Rows of questions on one picture, few of them: the longest families first, each into the first row with room.

    Args:
        found: `families` of these questions.
        width: tokens of a row; no question has more.
        beside: questions of a row, at most.
    """
    rows: list[list[Family]] = []
    fitting = [part for family in found for part in _parts(family, questions, width, beside)]
    for family in sorted(fitting, key=lambda family: -family.length):
        for row in rows:
            if read([*row, family]) <= width and len(members([*row, family])) <= beside:
                row.append(family)
                break
        else:
            rows.append([family])
    return rows


def read(row: Sequence[Family]) -> int:
    """Tokens of a row."""
    return sum(family.length for family in row)


def members(row: Sequence[Family]) -> list[int]:
    """Questions of a row, in the order in which `Row` has them."""
    return [k for family in row for k in family.members]


def families(questions: Sequence[Encoded], own: Sequence[int] | None = None) -> list[Family]:
    """Families that together read as few tokens as can be, if each reads a beginning of its own once.

    Args:
        own: so many tokens at the end of each question are shared with no other; one, if not given.
    """
    own = [1] * len(questions) if own is None else own
    # What begins alike stands side by side in the order of tokens.
    spelled = [np.stack([one.tokens, one.image_index], axis=1) for one in questions]
    order = sorted(range(len(questions)), key=lambda k: spelled[k].astype(">i4").tobytes())
    alike = [_alike(spelled[a][:-own[a]], spelled[b][:-own[b]]) for a, b in itertools.pairwise(order)]
    saved, begins = [0], [0]        # of the first k in this order; where the last family of these begins
    for end in range(1, len(order) + 1):
        best, shared = (saved[-1], end - 1), len(spelled[order[end - 1]])
        for start in range(end - 2, -1, -1):
            shared = min(shared, alike[start])
            if not shared:
                break
            best = max(best, (saved[start] + (end - 1 - start) * shared, start))
        saved.append(best[0])
        begins.append(best[1])
    found, end = [], len(order)
    while end:
        start = begins[end]
        shared = min(alike[start:end - 1], default=0)
        found.append(_family(tuple(order[start:end]), shared, questions))
        end = start
    return found[::-1]


def _alike(a: np.ndarray, b: np.ndarray) -> int:
    """Tokens at the beginning that are the same."""
    most = min(len(a), len(b))
    other = (a[:most] != b[:most]).any(axis=1)
    return int(other.argmax()) if other.any() else most


def _family(own: tuple[int, ...], shared: int, questions: Sequence[Encoded]) -> Family:
    shared = shared if len(own) > 1 else 0
    return Family(own, shared, shared + sum(questions[k].length - shared for k in own))


def _parts(family: Family, questions: Sequence[Encoded], width: int, beside: int) -> list[Family]:
    """A family, or halves of it that a row can hold."""
    if family.length <= width and len(family.members) <= beside:
        return [family]
    half = len(family.members) // 2
    return [part for own in (family.members[:half], family.members[half:])
            for part in _parts(_family(own, family.shared, questions), questions, width, beside)]


def laid_out(questions: Sequence[Encoded], row: Sequence[Family], width: int, beside: int, longest: int) -> Row:
    """A row as arrays: Q = `width`, N = `beside`, P = `longest`."""
    tokens, offset, branch = np.zeros((3, width), np.int32)
    index = np.full(width, -1, np.int32)
    source, lengths = np.zeros((beside, longest), np.int32), np.ones(beside, np.int32)
    start = member = 0

    def put(piece: slice, one: Encoded, number: int) -> np.ndarray:
        """Where a question's tokens go that are read now."""
        nonlocal start
        places = np.arange(start, start := start + len(one.tokens[piece]))
        tokens[places], index[places] = one.tokens[piece], one.image_index[piece]
        offset[places], branch[places] = np.arange(one.length)[piece], number
        return places

    for number, family in enumerate(row, 1):
        shared = put(slice(family.shared), questions[family.members[0]], number)
        for place, one in enumerate((questions[k] for k in family.members), 1):
            own = put(slice(family.shared, None), one, twig(number, place) if family.shared else number)
            source[member, :one.length], lengths[member] = np.r_[shared, own], one.length
            member += 1
    return Row(tokens, offset, branch, index, source, lengths)
