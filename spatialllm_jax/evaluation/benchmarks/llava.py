"""LLaVA-style questions: JSONL of question_id, image (or a list of them), text, and an answer where there is one."""

from __future__ import annotations

from spatialllm_jax.evaluation.benchmarks.base import Benchmark
from spatialllm_jax.evaluation.benchmarks.files import Row, image_id, numbered
from spatialllm_jax.evaluation.items import Item, yes_or_no
from spatialllm_jax.inference.prompts import PLACE


def item(row: Row) -> Item:
    """A line; without "answer" (or POPE's "label") it is asked and not scored."""
    image, *others = row.pictures("image") if row.get("image") is not None else (None,)
    answer = row.get("answer", row.get("label"))
    text = None if answer is None else str(answer).strip()
    # One picture stands in front, wherever its place is written.
    question, = numbered([row.text("text")], 1 + len(others)) if others else [
        row.text("text").replace(PLACE, "").strip()]
    return yes_or_no(Item(
        row.text("question_id"), image_id(image or b""), image, question, "exact", text,
        type=str(row.get("category", "all")), more=tuple((image_id(other), other) for other in others)))


BENCHMARKS = (Benchmark("llava", "LLaVA questions", ("*.jsonl",), ("question_id", "text"), item, max_new_tokens=128),)
