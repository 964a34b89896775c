"""What the benchmarks of answers share: a random LLaVA on disk, transformers' copy of it, and turns of both sides."""

from __future__ import annotations

import argparse
import operator
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from launch import bench_report
from launch import bench_train_data as data
from spatialllm_jax.errors import UserError

_AGREE = 0.9        # share of equal answers: float32 sums in another order decide near ties otherwise
Side = Callable[[], Mapping[Any, Any]]      # gives all answers, by what they answer


def written(size: data.Size, folder: Path, args: argparse.Namespace) -> tuple[Any, Any, int]:
    """(transformers' model, its picture processor, parameters); ours is to be read from `folder`/model.

    Args:
        args: of `data.add_flags`; with `perturb` the peer is another model.
    """
    try:
        import torch
        import transformers

        parameters = data.write_model(size, folder / "model", args.seed)
        if args.perturb:
            data.write_model(size, folder / "peer", args.seed, args.perturb)
    except ImportError as error:
        raise UserError(f"the peer needs {error.name}; run: pip install spatialllm-jax[torch]") from None
    torch.set_num_threads(args.cores)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        folder / ("peer" if args.perturb else "model"), attn_implementation="sdpa", dtype=torch.float32).eval()
    # Pictures have the encoder's size already.
    return model, transformers.CLIPImageProcessorPil(do_resize=False, do_center_crop=False), parameters


def compared(name: str, ours: Side, peer: Side, amount: int, repeats: int,
             same: Callable[[Any, Any], bool] = operator.eq) -> dict[str, Any]:
    """Medians of both sides in `amount` per second and of the ratios, after a first turn that compiles and compares.

    Raises:
        UserError: the answers are not the same.
    """
    def timed(side: Side) -> float:
        began = time.perf_counter()
        side()
        return time.perf_counter() - began

    mine, theirs = ours(), peer()
    equal = float(np.mean([key in mine and same(mine[key], answer) for key, answer in theirs.items()]))
    if equal < _AGREE:
        raise UserError(f"only {equal:.0%} of the answers are PyTorch's: these are different computations, and their "
                        "speeds mean nothing")
    turns = [(timed(ours), timed(peer)) for _ in range(repeats)]
    return {**bench_report.median(f"{name}_ours", [amount / a for a, _ in turns], 1),
            **bench_report.median(f"{name}_peer", [amount / b for _, b in turns], 1),
            **bench_report.median(f"{name}_ratio", [b / a for a, b in turns], 2),
            f"{name}_equal_answers": round(equal, 3)}
