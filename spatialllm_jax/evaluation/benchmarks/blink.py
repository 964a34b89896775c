"""BLINK's relative depth (Fu et al. 2024): which of two circled points is closer to the camera."""

from __future__ import annotations

from spatialllm_jax.evaluation.benchmarks.base import Benchmark
from spatialllm_jax.evaluation.benchmarks.files import BadRow, Row, image_id
from spatialllm_jax.evaluation.items import Item


def item(row: Row) -> Item | None:
    """A row of `Relative_Depth/val-*.parquet`; the points are drawn in the picture already."""
    if "relative_depth" not in row.text("idx").lower():
        return None
    if row.text("answer") == "hidden":
        raise BadRow("its answer is hidden (a test split); use the validation split")
    if row.get("image_2") is not None:
        raise BadRow("it shows several pictures; one is supported")
    options, image = row.options("choices"), row.picture("image_1")
    return Item(row.text("idx"), image_id(image), image, row.text("question"), "choice", row.letter("answer", options),
                options, layout="brackets", published=str(row.get("prompt", "")), type="relative_depth")


BENCHMARKS = (Benchmark("blink_depth", "BLINK relative depth",
                        ("Relative_Depth/val*.parquet", "val*.parquet", "*Relative_Depth*val*.parquet", "*.jsonl"),
                        ("idx", "question", "choices", "answer", "image_1"), item),)
