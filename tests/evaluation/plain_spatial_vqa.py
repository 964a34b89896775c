"""SpatialVQA asked and scored straight from its records: what the benchmarks' loop is held to."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.samples import marks_of
from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation.parsing import parse_choice
from spatialllm_jax.evaluation.statistics import Accuracy, accuracy, macro
from spatialllm_jax.inference.engine import Engine
from spatialllm_jax.inference.prompts import Prompt
from spatialllm_jax.questions.types import SPATIAL_TYPES, Question


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model said to one question.

    Attributes:
        choice: index of the option it chose, None for a parse failure.
        raw: the generated text, or the chosen option's text.
        scores: log-likelihood per option, () when the answer was generated.
    """

    question: Question
    choice: int | None
    raw: str
    scores: tuple[float, ...] = ()

    @property
    def right(self) -> bool:
        """Whether the right option was chosen."""
        return self.choice == self.question.answer_index

    def as_dict(self) -> dict[str, Any]:
        """One line of `predictions.jsonl`."""
        q = self.question
        return {"id": q.id, "image": q.image, "type": q.type, "prompt": q.text, "options": list(q.options),
                "answer": q.answer_index, "choice": self.choice, "raw": self.raw, "right": self.right,
                "scores": [round(score, 5) for score in self.scores]}


def select(records: Iterable[ImageRecord], types: Sequence[str] = tuple(SPATIAL_TYPES),
           ) -> list[tuple[Question, bytes]]:
    """The multiple-choice questions of the wanted types, each with its image's bytes.

    Raises UserError when there is none, or one of them has no right answer.
    """
    chosen = []
    for record in records:
        for question in record.questions:
            if question.type not in types:
                continue
            if not question.options or question.answer_index is None:
                raise UserError(f"question {question.id} has no options or no right answer; SpatialVQA needs both")
            chosen.append((question, record.image))
    if not chosen:
        raise UserError(f"the dataset has no questions of the types {', '.join(types)}")
    return chosen


def predict(engine: Engine, items: Sequence[tuple[Question, bytes]], *, mode: str = "score", blind: bool = False,
            max_new_tokens: int = 32, row_length: int = 512, show_progress: bool = False) -> list[Prediction]:
    """Answers every question.

    Args:
        mode: "score" chooses the likeliest option; "generate" reads the model's own words.
        blind: blank every picture, which measures what text alone gives away.
    """
    prompts = [Prompt(q.image, None if blind else image, q.text, q.options, () if blind else marks_of([q]))
               for q, image in items]
    if mode == "score":
        scores = engine.score(prompts, row_length=row_length, show_progress=show_progress)
        return [Prediction(q, int(np.argmax(s)), q.options[int(np.argmax(s))], tuple(s.tolist()))
                for (q, _), s in zip(items, scores, strict=True)]
    if mode != "generate":
        raise UserError(f"--answer {mode}: choose score or generate")
    texts = engine.generate(prompts, max_new_tokens=max_new_tokens, show_progress=show_progress)
    return [Prediction(q, parse_choice(text, q.options), text) for (q, _), text in zip(items, texts, strict=True)]


def score(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """{"overall", "by_type", "by_group", "macro"} of `Accuracy` as plain numbers.

    Overall is the micro average, as the paper's "Avg." is (docs/reproduction.md); macro is the mean over types.
    """
    def over(chosen: Sequence[Prediction]) -> Accuracy:
        return accuracy([p.right for p in chosen], [1 / len(p.question.options) for p in chosen],
                        sum(p.choice is None for p in chosen))

    by_type: dict[str, list[Prediction]] = collections.defaultdict(list)
    by_group: dict[str, list[Prediction]] = collections.defaultdict(list)
    for prediction in predictions:
        by_type[prediction.question.type].append(prediction)
        by_group[prediction.question.group].append(prediction)
    order = [name for name in SPATIAL_TYPES if name in by_type] + sorted(set(by_type) - set(SPATIAL_TYPES))
    types = {name: over(by_type[name]) for name in order}
    return {"overall": over(predictions).as_dict(), "macro": macro(types),
            "by_type": {name: value.as_dict() for name, value in types.items()},
            "by_group": {name: over(chosen).as_dict() for name, chosen in sorted(by_group.items())}}
