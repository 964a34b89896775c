"""Any VLMEvalKit TSV: multiple choice (columns A, B, ...), yes or no, or short answers compared as texts."""

from __future__ import annotations

import dataclasses

from spatialllm_jax.evaluation.benchmarks.base import Benchmark
from spatialllm_jax.evaluation.benchmarks.files import Row, image_id, numbered
from spatialllm_jax.evaluation.items import Item, yes_or_no

_TURN = 1_000_000   # VLMEvalKit numbers the k-th rotation of question n as n + k * 1e6


def item(row: Row) -> Item:
    """A row: index, image (base64, the index of the row that holds it, or a list) or image_path, question, A-D,
    answer, category.

    Several pictures stand in front, or where question and options say "<image 2>" (as MMMU's do) or "<image>" in their
    order (MUIRBench's).
    """
    index, question = row.text("index"), row.text("question")
    by_path = row.get("image") is None and row.get("image_path") is not None
    image, *others = row.pictures("image_path" if by_path else "image")
    if hint := row.get("hint"):
        question = f"Hint: {hint}\nQuestion: {question}"
    options = row.options() if row.get("A") is not None else ()
    if others:
        question, *named = numbered((question, *options), 1 + len(others))
        options = tuple(named)
    known = Item(index, image_id(image), image, question, "exact", row.text("answer"),
                 type=str(row.get("category", "all")), group=str(row.get("l2-category", row.get("split", "all"))),
                 more=tuple((image_id(other), other) for other in others))
    if not options:
        return yes_or_no(known)
    turned = str(int(index) % _TURN) if index.isdecimal() and int(index) >= _TURN else ""
    # A hint comes before the word "Question", which the layout writes.
    published = "" if not hint else "\n".join(
        [question, "Options:", *(f"{letter}. {option}" for letter, option in zip("ABCDEFGHIJ", options, strict=False)),
         "Please select the correct answer from the options above."])
    return dataclasses.replace(known, rule="choice", answer=row.letter("answer", options), options=options,
                               layout="vlmevalkit", published=published, circle=turned)


BENCHMARKS = (Benchmark("tsv", "VLMEvalKit TSV", ("*.tsv",), ("index", "image or image_path", "question", "answer"),
                        item),)
