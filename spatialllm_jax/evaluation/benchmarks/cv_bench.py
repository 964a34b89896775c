"""CV-Bench (Tong et al. 2024, Cambrian-1): 2D counting and relations, 3D depth order and relative distance."""

from __future__ import annotations

from collections.abc import Callable

from spatialllm_jax.evaluation.benchmarks.base import Benchmark, Lines, mean, share
from spatialllm_jax.evaluation.benchmarks.files import Row, image_id
from spatialllm_jax.evaluation.items import Item


def _item(kind: str) -> Callable[[Row], Item | None]:
    def item(row: Row) -> Item | None:
        """A row of `test_2d.parquet` and `test_3d.parquet` (once one `test.parquet`), or of the JSONL with `img/`."""
        if kind not in ("", row.text("type")):
            return None
        options = row.options("choices")
        image = row.picture("image" if row.get("image") is not None else "filename")
        return Item(row.text("idx"), image_id(image), image, row.text("question"), "choice",
                    row.letter("answer", options), options, layout="brackets", published=str(row.get("prompt", "")),
                    type=row.text("task").lower(), group=row.text("type"), extra={"source": row.text("source")})

    return item


def headline(lines: Lines) -> dict[str, float | None]:
    """2D is the mean of ADE20K and COCO, 3D is Omni3D, overall the mean of the two; None for what is not there."""
    ade, coco, omni = (share([line for line in lines if line["extra"]["source"].lower() == source])
                       for source in ("ade20k", "coco", "omni3d"))
    flat = mean([ade, coco])
    return {"2D": flat, "3D": omni, "overall": mean([flat, omni])}


BENCHMARKS = tuple(
    Benchmark(name, title, ("test.parquet", "test*.parquet", "*.parquet", "test.jsonl", "test*.jsonl"),
              ("idx", "type", "task", "question", "choices", "answer", "source"), _item(kind), headline)
    for name, title, kind in (("cv_bench", "CV-Bench", ""), ("cv_bench_2d", "CV-Bench 2D", "2D"),
                              ("cv_bench_3d", "CV-Bench 3D", "3D")))
