"""`python -m launch.bench <what> [flags]`: measured speed of one room of the house.

Each benchmark is a module with `bench(args) -> dict`, where `args` are the flags after its name; the
module says what it measures. New ones add a line to BENCHMARKS.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from launch import cli
from spatialllm_jax.errors import UserError

BENCHMARKS = {
    "checkpoint": "launch.bench_checkpoint",
    "convert": "launch.bench_convert",
    "decode": "launch.bench_decode",
    "evaluate": "launch.bench_evaluate",
    "input": "launch.bench_input",
    "pseudo_labels": "launch.bench_pseudo_labels",
    "questions": "launch.bench_questions",
    "render": "launch.bench_render",
    "serve": "launch.bench_serve",
    "train": "launch.bench_train",
}


def main(argv: list[str]) -> Mapping[str, Any]:
    """Runs the benchmark that the first argument names and returns its figures."""
    listing = "one of: " + ", ".join(BENCHMARKS)
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: python -m launch.bench <what> [flags] [--json]\n\n<what> is {listing}; "
              "`python -m launch.bench <what> --help` shows its flags")
        raise SystemExit(0 if argv else 2)
    if argv[0] not in BENCHMARKS:
        raise UserError(f"benchmark {argv[0]!r} does not exist; use {listing}")
    return importlib.import_module(BENCHMARKS[argv[0]]).bench(argv[1:])


if __name__ == "__main__":
    cli.run(main)
