"""EmbSpatial-Bench (Du et al. 2024): six relations from the viewer's place, four options."""

from __future__ import annotations

from spatialllm_jax.evaluation.benchmarks.base import Benchmark
from spatialllm_jax.evaluation.benchmarks.files import BadRow, Row, image_id
from spatialllm_jax.evaluation.items import Item


def item(row: Row) -> Item:
    """An entry of `embspatial_bench.json`: `answer` is an index, `image` base64."""
    options, answer, image = row.options("answer_options"), int(row.need("answer")), row.picture("image")
    if not 0 <= answer < len(options):
        raise BadRow(f"answer {answer} is none of its {len(options)} options")
    return Item(row.text("question_id"), image_id(image), image, row.text("question"), "choice", answer, options,
                layout="llava", type=row.text("relation"), group=str(row.get("data_source", "all")))


BENCHMARKS = (Benchmark("embspatial", "EmbSpatial-Bench", ("embspatial_bench.json", "*.json", "*.jsonl", "*.parquet"),
                        ("question_id", "question", "relation", "answer", "answer_options", "image"), item),)
