"""SpatialRGPT-Bench (Cheng et al. 2024): yes or no, which region, lengths and clock directions about marked regions.

The published score has GPT-4 compare every answer with a reference sentence. Here rules read both: what they cannot
read is counted, and can be given to a judge. A length is right within 25 %, a direction within one hour.
"""

from __future__ import annotations

import re

from spatialllm_jax.evaluation import quantities
from spatialllm_jax.evaluation.benchmarks.base import Benchmark, Lines, share
from spatialllm_jax.evaluation.benchmarks.files import BadRow, Row, image_id
from spatialllm_jax.evaluation.items import YES_NO, Item
from spatialllm_jax.evaluation.parsing import parse_choice, parse_claim
from spatialllm_jax.questions.types import Region

LENGTHS = ("distance", "horizontal_distance", "vertical_distance", "width", "height")
_PAIRS = {"above": "below/above", "below": "below/above", "left": "left/right", "right": "left/right",
          "big": "big/small", "small": "big/small", "tall": "tall/short", "short": "tall/short",
          "wide": "wide/thin", "thin": "wide/thin", "behind": "behind/front", "front": "behind/front"}


def item(row: Row) -> Item:
    """An entry of `SpatialRGPT-Bench_v1.json`, or a row of `data/val-*.parquet`, which has the picture in it: regions
    are drawn as numbered boxes, "Region [0]" in the question."""
    question, qa, info = row.text("text_q"), row.nested("qa_info"), row.nested("image_info")
    reference = row.nested("conversations")[1]["value"]
    marks = tuple(_region(k, box, info) for k, box in enumerate(row.nested("bbox")))
    name = row.get("image") if row.get("image") is not None else info["file_path"]
    image = Row(row.where, {"image": name}, row.folders).picture("image")
    category, rule = str(qa["category"]), "metres"
    options: tuple[str, ...] = ()
    answer: float | int | None
    kind = category.removesuffix("_data").removesuffix("_predicate").removesuffix("_choice")
    if category == "direction":
        rule, answer = "clock", quantities.parse_clock(reference)
    elif qa["type"] == "quantitative":
        if kind not in LENGTHS:
            raise BadRow(f"category {category!r} is none of SpatialRGPT-Bench's")
        answer = quantities.parse_metres(reference)
    elif "choice" in category:
        rule, options = "choice", tuple(dict.fromkeys(re.findall(r"Region \[\d+\]", question)))
        answer = parse_choice(reference, options)
    else:
        rule, options, answer = "claim", YES_NO, parse_claim(reference)
    if answer is None:
        raise BadRow(f"its reference {reference[:60]!r} cannot be read by rule")
    return Item(row.text("id"), image_id(image), image, question, rule, answer, options, marks=marks,
                type=_PAIRS.get(kind, kind), group=str(qa["type"]))


def _region(number: int, box: list[float], info: dict[str, float]) -> Region:
    width, height = float(info["width"]), float(info["height"])
    x1, x2 = (min(max(float(x) / width, 0.0), 1.0) for x in (box[0], box[2]))
    y1, y2 = (min(max(float(y) / height, 0.0), 1.0) for y in (box[1], box[3]))
    return Region(str(number), (x1, y1, x2, y2), "")


def headline(lines: Lines) -> dict[str, float | None]:
    """Qualitative and quantitative success, and the mean error of the lengths that could be read, as a share."""
    lengths = [line for line in lines if line["rule"] == "metres" and line["parsed"] is not None and line["answer"] > 0]
    errors = [abs(line["parsed"] - line["answer"]) / line["answer"] for line in lengths]
    return {**{kind: share([line for line in lines if line["group"] == kind])
               for kind in ("qualitative", "quantitative")},
            "mean error of lengths": sum(errors) / len(errors) if errors else None}


BENCHMARKS = (Benchmark("spatialrgpt", "SpatialRGPT-Bench", ("SpatialRGPT-Bench_v1.json", "*.json", "data/*.parquet"),
                        ("id", "text_q", "qa_info", "image_info", "bbox", "conversations"), item, headline,
                        max_new_tokens=64),)
