"""LLaVA-style questions: JSONL of question_id, image (or a list of them), text, and an answer where there is one."""

from __future__ import annotations

import dataclasses

from spatialllm_jax.evaluation.benchmarks.base import Benchmark
from spatialllm_jax.evaluation.benchmarks.files import BadRow, Row, image_id
from spatialllm_jax.evaluation.items import YES_NO, Item, numbered
from spatialllm_jax.inference.prompts import PLACE


def item(row: Row) -> Item:
    """A line; without "answer" (or POPE's "label") it is asked and not scored."""
    image, *others = row.pictures("image") if row.get("image") is not None else (None,)
    answer = row.get("answer", row.get("label"))
    text = None if answer is None else str(answer).strip()
    try:
        # One picture stands in front, wherever its place is written.
        question, = numbered([row.text("text")], 1 + len(others)) if others else [
            row.text("text").replace(PLACE, "").strip()]
    except ValueError as error:
        raise BadRow(str(error)) from None
    known = Item(row.text("question_id"), image_id(image or b""), image, question, "exact", text,
                 type=str(row.get("category", "all")), more=tuple((image_id(other), other) for other in others))
    if text is not None and text.lower() in ("yes", "no"):
        return dataclasses.replace(known, rule="yes_no", answer=int(text.lower() == "no"), options=YES_NO)
    return known


BENCHMARKS = (Benchmark("llava", "LLaVA questions", ("*.jsonl",), ("question_id", "text"), item, max_new_tokens=128),)
