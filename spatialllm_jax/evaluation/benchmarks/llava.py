"""LLaVA-style questions: JSONL of question_id, image, text, and an answer where there is one."""

from __future__ import annotations

from spatialllm_jax.evaluation.benchmarks.base import Benchmark
from spatialllm_jax.evaluation.benchmarks.files import Row, image_id
from spatialllm_jax.evaluation.items import YES_NO, Item


def item(row: Row) -> Item:
    """A line; without "answer" (or POPE's "label") it is asked and not scored."""
    image = row.picture("image") if row.get("image") is not None else None
    answer = row.get("answer", row.get("label"))
    text = None if answer is None else str(answer).strip()
    name, question = image_id(image or b""), row.text("text").replace("<image>", "").strip()
    kind = str(row.get("category", "all"))
    key = row.text("question_id")
    if text is not None and text.lower() in ("yes", "no"):
        return Item(key, name, image, question, "yes_no", int(text.lower() == "no"), YES_NO, type=kind)
    return Item(key, name, image, question, "exact", text, type=kind)


BENCHMARKS = (Benchmark("llava", "LLaVA questions", ("*.jsonl",), ("question_id", "text"), item, max_new_tokens=128),)
