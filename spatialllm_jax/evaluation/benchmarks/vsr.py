"""VSR (Liu et al. 2023, Visual Spatial Reasoning): is a statement about two things in a photograph true?"""

from __future__ import annotations

from spatialllm_jax.evaluation.benchmarks.base import Benchmark
from spatialllm_jax.evaluation.benchmarks.files import BadRow, Row
from spatialllm_jax.evaluation.items import YES_NO, Item

# The authors' seven groups of relations.
_GROUPS = {
    "adjacency": "adjacent to, alongside, at the side of, at the right side of, at the left side of, attached to, "
                 "at the back of, ahead of, against, at the edge of",
    "directional": "off, past, toward, down, deep down, up, away from, along, around, from, into, to, across, across "
                   "from, through, down from",
    "orientation": "facing, facing away from, parallel to, perpendicular to",
    "projective": "on top of, beneath, beside, behind, left of, right of, under, in front of, below, above, over, "
                  "in the middle of",
    "proximity": "by, close to, near, far from, far away from",
    "topological": "connected to, detached from, has as a part, part of, contains, within, at, on, in, with, "
                   "surrounding, among, consists of, out of, between, inside, outside, touching",
}
RELATIONS = {relation: group for group, names in _GROUPS.items() for relation in names.split(", ")}


def item(row: Row) -> Item:
    """A line of `splits/*/test.jsonl`. It has no id: picture and statement together are one."""
    label = row.need("label")
    if label not in (0, 1):
        raise BadRow(f"label {label!r} is neither 0 nor 1")
    name, caption, relation = row.text("image"), row.text("caption"), row.text("relation")
    return Item(f"{name}: {caption}", name, row.picture("image"),
                f"{caption} Is this statement about the picture true? Answer yes or no.", "yes_no", 1 - label, YES_NO,
                type=relation, group=RELATIONS.get(relation, "unallocated"))


BENCHMARKS = (Benchmark("vsr", "VSR", ("test.jsonl", "splits/random/test.jsonl", "*.jsonl"),
                        ("image", "caption", "label", "relation"), item),)
