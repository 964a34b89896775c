"""Benchmarks by name; each module holds one and says what its files look like."""

from __future__ import annotations

from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation.benchmarks import (
    blink,
    cv_bench,
    embspatial,
    llava,
    spatial457,
    spatial_vqa,
    spatialrgpt,
    threedsrbench,
    tsv,
    vsr,
)
from spatialllm_jax.evaluation.benchmarks.base import Benchmark, Source, items_of

_MODULES = (spatial_vqa, threedsrbench, cv_bench, blink, spatialrgpt, spatial457, embspatial, vsr, tsv, llava)
BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark for module in _MODULES for benchmark in module.BENCHMARKS}


def get(name: str) -> Benchmark:
    """The benchmark of that name. Raises UserError where there is none."""
    if name not in BENCHMARKS:
        raise UserError(f"--benchmark {name} is unknown; choose from {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


__all__ = ["BENCHMARKS", "Benchmark", "Source", "get", "items_of"]
