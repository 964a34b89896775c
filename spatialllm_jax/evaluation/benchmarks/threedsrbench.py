"""3DSRBench (Ma et al. 2025): 12 types, every question mirrored and under rotated options.

A row's `qid` is ID, ID-1 (options rotated), ID-flip (picture mirrored), ID-flip-1. CircularEval asks that all rotations
of a question be right, FlipEval that a question and its mirror image are; both together that all rows of an ID are.
"""

from __future__ import annotations

import re

from spatialllm_jax.evaluation.benchmarks.base import Benchmark
from spatialllm_jax.evaluation.benchmarks.files import BadRow, Row, image_id
from spatialllm_jax.evaluation.items import Item

GROUPS = ("height", "location", "orientation", "multi_object")
_QID = re.compile(r"(?P<base>.+?)(?P<flip>-flip)?(?P<turn>-\d)?")


def item(row: Row) -> Item:
    """A row of `3dsrbench_v1_vlmevalkit_circular.tsv`."""
    qid, category, options = row.text("qid"), row.text("category"), row.options()
    parts = _QID.fullmatch(qid)
    group = next((name for name in GROUPS if category.startswith(name)), None)
    if parts is None or group is None:
        raise BadRow(f"qid {qid!r} or category {category!r} is none of 3DSRBench's")
    base, flip, turn = parts["base"], parts["flip"] or "", parts["turn"] or ""
    image = row.picture("image")
    return Item(qid, image_id(image), image, row.text("question"), "choice", row.letter("answer", options), options,
                layout="vlmevalkit", type=category, group=group, cluster=base,
                circle=base + flip, flip=base + turn, whole=base)


BENCHMARKS = (Benchmark("3dsrbench", "3DSRBench", ("*circular*.tsv", "*3dsr*.tsv", "*.tsv"),
                        ("qid", "image", "question", "A", "B", "answer", "category"), item),)
