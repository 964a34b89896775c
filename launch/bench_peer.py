"""The model that the benchmarks of answers give to both sides: a random LLaVA on disk, and transformers' copy of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from launch import bench_train_data as data
from spatialllm_jax.errors import UserError


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
