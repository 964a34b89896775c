"""A transformers or original-LLaVA folder (config.json and weights) as our configuration and parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert import clip, dinov2, llama, llava, llava_next, llava_original, mae
from convert.engine import Config, family_of, to_jax
from convert.files import read_json
from convert.pickles import open_checkpoint
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import ModelConfig, VisionConfig
from spatialllm_jax.models.linear import Params

# transformers' model_type -> our configuration.
MODEL_TYPES: dict[str, Callable[[Mapping[str, Any]], Config]] = {
    "clip": clip.contrastive_config_from_hf,
    "clip_vision_model": clip.config_from_hf,
    "dinov2": dinov2.config_from_hf,
    "dinov2_with_registers": dinov2.config_from_hf,
    "vit_mae": mae.config_from_hf,
    "llama": llama.config_from_hf,
    "llava": llava.config_from_hf,
    "llava_next": llava_next.config_from_hf,
}


def config_from_hf(hf: Mapping[str, Any], where: str = "config.json", tower: VisionConfig | None = None) -> Config:
    """Our configuration of a transformers config.json, or of the original LLaVA's.

    Args:
        where: the file's name in messages.
        tower: the vision tower of an original LLaVA that does not describe its own.

    Raises:
        UserError: the model type is not supported, or a field is missing.
    """
    kind, original = hf.get("model_type", ""), llava_original.recognised(hf)
    if not original and kind not in MODEL_TYPES:
        raise UserError(f"{where}: model_type {kind!r} is not supported; {', '.join(MODEL_TYPES)} are")
    try:
        return llava_original.config_from_hf(hf, tower) if original else MODEL_TYPES[kind](hf)
    except KeyError as error:
        raise UserError(f"{where}: the field {error} is missing") from None


def load(folder: str | Path, dtype: Any = np.float32, vision_tower: str | Path | None = None,
         ) -> tuple[Params, Config]:
    """(parameters, configuration) of a folder.

    A CLIPModel gives both towers (`ClipConfig`); a LLaVA gives the whole `ModelConfig` (see
    `llava_original.load` for one without its tower); the others give one tower or decoder, to be put under
    params["vision"][name] or params["llm"].

    Args:
        dtype: type of the parameters.
        vision_tower: CLIP folder that completes an original LLaVA folder.

    Raises:
        UserError: see `open_checkpoint`, `config_from_hf` and `engine.to_jax`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one with config.json and *.safetensors")
    hf, tower = read_json(folder / "config.json"), None if vision_tower is None else Path(vision_tower)
    config = config_from_hf(hf, str(folder / "config.json"),
                            None if tower is None else llava_original.tower_config(tower))
    if llava_original.recognised(hf):
        assert isinstance(config, ModelConfig)
        return llava_original.load(folder, config, dtype, tower), config
    if tower is not None:
        raise UserError(f"--vision-tower completes folders of the original LLaVA, but {folder} is none; leave it out")
    return to_jax(open_checkpoint(folder), family_of(config), config, dtype), config
