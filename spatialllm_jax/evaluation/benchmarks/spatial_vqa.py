"""SpatialVQA as built here (paper, Supplement B): a dataset folder that `launch.generate` wrote."""

from __future__ import annotations

from collections.abc import Iterator

from spatialllm_jax.data.samples import marks_of
from spatialllm_jax.data.storage import open_split
from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation.benchmarks.base import Benchmark, Source
from spatialllm_jax.evaluation.items import Item, Skipped
from spatialllm_jax.questions.types import SPATIAL_TYPES, Question


def item(question: Question, image: bytes) -> Item | Skipped:
    """The question as an item; its options are the answers as the assistant would say them."""
    if not question.options or question.answer_index is None:
        return Skipped(f"question {question.id}", "it has no options or no right answer")
    return Item(question.id, question.image, image, question.text, "choice", question.answer_index, question.options,
                type=question.type, group=question.group, marks=marks_of([question]))


def items(source: Source) -> Iterator[Item | Skipped]:
    """The multiple-choice questions of the seven types."""
    records = open_split(str(source.path), source.split)
    count = min(source.limit, len(records)) if source.limit > 0 else len(records)
    found = False
    for index in range(count):
        record = records[index]
        for question in record.questions:
            if question.type in SPATIAL_TYPES:
                found = True
                yield item(question, record.image)
    if not found:
        raise UserError(f"the dataset has no questions of the types {', '.join(SPATIAL_TYPES)}")


BENCHMARKS = (Benchmark("spatial_vqa", "SpatialVQA", items=items, answer="score"),)
