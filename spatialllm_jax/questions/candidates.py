"""What the families share: a case worth asking about, and putting it into words."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from spatialllm_jax.questions import wording
from spatialllm_jax.questions.config import QuestionConfig
from spatialllm_jax.questions.references import SceneNames, overlap, refer
from spatialllm_jax.questions.types import Question
from spatialllm_jax.scene.relations import SceneArrays, Verdict
from spatialllm_jax.scene.types import Scene

# More cases than this times the quota are not looked for; enough to choose answers evenly.
_SURPLUS = 4
# Options listed for a letter; more candidates than that are thinned out at random.
_MOST_OPTIONS = 6


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


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A scene made ready for the families: arrays, names and the objects that can be pointed at."""

    scene: Scene
    arrays: SceneArrays
    names: SceneNames
    pool: list[int]
    config: QuestionConfig
    rng: np.random.Generator

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


def put(case: Case, view: View, group: str, question_id: str) -> Question:
    """Puts a case into words: a paraphrase, references, options and the answer."""
    config, rng = view.config, view.rng
    references, regions = refer(view.names, case.objects, config)
    full = config.register == "full"
    ask, answer = wording.choose(case.type, config.register, config.paraphrases, rng)
    roles = {"a": case.subject} if case.subject else _roles(case.type, [r.text for r in references])
    question = wording.fill(ask, **roles)

    values = list(case.values)
    if values and values[0] is None:
        values = [(r.text if full else r.short) for r in references[-len(values) :]]
    words = [_spoken(case.type, str(value)) if full else str(value) for value in values]
    options: tuple[str, ...] = ()
    right = case.right
    if not words:
        text = wording.fill(answer, x=case.text, **roles)
    elif config.answer_style == "letter":
        order = rng.permutation(len(words)).tolist()
        if len(order) > _MOST_OPTIONS and case.right is not None:
            others = [k for k in order if k != case.right][: _MOST_OPTIONS - 1]
            order = [k for k in order if k == case.right or k in others]
        lines = [f"{wording.LETTERS[k]}. {words[index]}" for k, index in enumerate(order)]
        question = "\n".join([question, *lines, wording.LETTER_PROMPT])
        options = tuple(wording.LETTERS[: len(order)])
        right = None if case.right is None else order.index(case.right)
        text = options[right] if right is not None else ""
    else:
        options = tuple(wording.fill(answer, x=word, **roles) for word in words)
        text = options[right] if right is not None else wording.fill(answer, x=case.text, **roles)
    return Question(
        id=question_id,
        image=view.scene.image.id,
        type=case.type,
        group=group,
        source=view.scene.source,
        turns=((question, text),),
        regions=regions,
        region_style=config.region_style,
        options=options,
        answer_index=right,
        quantities=case.quantities,
        margin=case.margin,
    )


def _roles(kind: str, texts: list[str]) -> dict[str, str]:
    if kind in ("closer_to_object", "facing_object"):
        return {"c": texts[0], "a": texts[1], "b": texts[2]}
    return dict(zip("abc", texts, strict=False))


def _spoken(kind: str, value: str) -> str:
    return wording.SAME_DIRECTION[value] if kind == "same_direction" else value
