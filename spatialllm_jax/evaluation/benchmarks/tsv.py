"""Any VLMEvalKit TSV: multiple choice (columns A, B, ...), yes or no, or short answers compared as texts."""

from __future__ import annotations

from spatialllm_jax.evaluation.benchmarks.base import Benchmark
from spatialllm_jax.evaluation.benchmarks.files import Row, image_id
from spatialllm_jax.evaluation.items import YES_NO, Item

_TURN = 1_000_000   # VLMEvalKit numbers the k-th rotation of question n as n + k * 1e6


def item(row: Row) -> Item:
    """A row: index, image (base64, or the index of the row that holds it), question, A-D, answer, category."""
    index, question, image = row.text("index"), row.text("question"), row.picture("image")
    if hint := row.get("hint"):
        question = f"Hint: {hint}\nQuestion: {question}"
    kind, group = str(row.get("category", "all")), str(row.get("l2-category", row.get("split", "all")))
    name, text = image_id(image), row.text("answer")
    if row.get("A") is None:
        if text.lower() in ("yes", "no"):
            return Item(index, name, image, question, "yes_no", int(text.lower() == "no"), YES_NO,
                        type=kind, group=group)
        return Item(index, name, image, question, "exact", text, type=kind, group=group)
    options = row.options()
    turned = str(int(index) % _TURN) if index.isdecimal() and int(index) >= _TURN else ""
    # A hint comes before the word "Question", which the layout writes.
    published = "" if not hint else "\n".join(
        [question, "Options:", *(f"{letter}. {option}" for letter, option in zip("ABCDEFGHIJ", options, strict=False)),
         "Please select the correct answer from the options above."])
    return Item(index, name, image, question, "choice", row.letter("answer", options), options, layout="vlmevalkit",
                published=published, circle=turned, type=kind, group=group)


BENCHMARKS = (Benchmark("tsv", "VLMEvalKit TSV", ("*.tsv",), ("index", "image", "question", "answer"), item),)
