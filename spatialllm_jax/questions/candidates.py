"""What the families share: the objects of a scene in turn, and a case that is worth asking about."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from spatialllm_jax.questions.config import QuestionConfig
from spatialllm_jax.questions.references import SceneNames, overlap
from spatialllm_jax.scene.relations import SceneArrays, Verdict
from spatialllm_jax.scene.types import Scene
from spatialllm_jax.scene.view_relations import ViewArrays, view_arrays

# More cases than this times the quota are not looked for; enough to choose answers evenly.
_SURPLUS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A clear case of one question type, not yet in words.

    Attributes:
        type: question type.
        objects: indices into the scene's objects in order of mention.
        answer: what the balance counts: "first", "left", "yes" ...
        values: the candidate answers in canonical order; () for free-form. Entries None stand for the
            references of objects `objects[-len(values):]`.
        right: index into `values`, or None.
        text: the answer when there are no values.
        quantities, margin: as in `Question`.
        subject: words that replace the reference {a} ("the red object", "a car"), or "".
        noun: word that stands for the object's name in its reference ("object"), or "".
        wrong: draws answers that are clearly wrong for a choice beside `text`; None where there are none.
    """

    type: str
    objects: tuple[int, ...]
    answer: str
    values: tuple[str | None, ...] = ()
    right: int | None = None
    text: str = ""
    quantities: Mapping[str, float] = dataclasses.field(default_factory=dict)
    margin: float | None = None
    subject: str = ""
    noun: str = ""
    wrong: Callable[[np.random.Generator], list[str]] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A scene made ready for the families: arrays, names and the objects that can be pointed at."""

    scene: Scene
    arrays: SceneArrays
    names: SceneNames
    pool: list[int]
    config: QuestionConfig
    rng: np.random.Generator

    @functools.cached_property
    def seen(self) -> ViewArrays:
        """What the view relations read; computed only where they are asked."""
        return view_arrays(self.scene, self.arrays)

    def pairs(self, ordered: bool = False) -> Iterator[tuple[int, int]]:
        """All pairs in random order; unordered pairs come with a random order of mention."""
        found = list(itertools.permutations(self.pool, 2) if ordered else itertools.combinations(self.pool, 2))
        order = self.rng.permutation(len(found)).tolist()
        flips = [False] * len(found) if ordered else (self.rng.random(len(found)) < 0.5).tolist()
        for k in order:
            a, b = found[k]
            yield (b, a) if flips[k] else (a, b)

    def triples(self) -> Iterator[tuple[int, int, int]]:
        """All (anchor, a, b) in random order, a and b in a random order of mention."""
        found = [
            (c, a, b)
            for c in self.pool
            for a, b in itertools.combinations([i for i in self.pool if i != c], 2)
        ]
        order = self.rng.permutation(len(found)).tolist()
        flips = (self.rng.random(len(found)) < 0.5).tolist()
        for k in order:
            c, a, b = found[k]
            yield (c, b, a) if flips[k] else (c, a, b)

    def singles(self) -> Iterator[int]:
        """The objects in random order."""
        yield from (self.pool[k] for k in self.rng.permutation(len(self.pool)).tolist())


def two_way(
    kind: str,
    groups: Iterator[tuple[int, ...]],
    judge: Callable[..., Verdict | None],
    view: View,
    quota: int,
) -> list[Case]:
    """Cases whose answer is one of the last two objects mentioned."""
    return [
        Case(kind, objects, verdict.answer, (None, None), 0 if verdict.answer == "first" else 1, "",
             verdict.quantities, verdict.margin)
        for objects, verdict in itertools.islice(_clear(groups, judge, view), _SURPLUS * quota)
    ]  # fmt: skip


def one_of(
    kind: str,
    groups: Iterator[tuple[int, ...]],
    judge: Callable[..., Verdict | None],
    values: Sequence[str],
    view: View,
    quota: int,
) -> list[Case]:
    """Cases whose answer is one of a fixed list of words; verdicts outside the list are left out."""
    known = ((objects, verdict) for objects, verdict in _clear(groups, judge, view) if verdict.answer in values)
    return [
        Case(kind, objects, verdict.answer, tuple(values), values.index(verdict.answer), "", verdict.quantities,
             verdict.margin)
        for objects, verdict in itertools.islice(known, _SURPLUS * quota)
    ]  # fmt: skip


def _clear(
    groups: Iterator[tuple[int, ...]], judge: Callable[..., Verdict | None], view: View
) -> Iterator[tuple[tuple[int, ...], Verdict]]:
    """The groups of objects with a verdict whose regions can be told apart."""
    for objects in groups:
        verdict = judge(view.arrays, *objects, view.config.margins)
        if verdict is not None and not overlap(view.names, objects, view.config.max_overlap):
            yield objects, verdict
