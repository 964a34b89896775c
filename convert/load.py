"""A transformers folder (config.json and safetensors) as our configuration and parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert import clip, dinov2, llama, llava, mae, spatialllm
from convert.engine import Config, family_of, to_jax
from convert.files import Safetensors, read_json
from spatialllm_jax.errors import UserError
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
    "spatialllm": spatialllm.config_from_hf,
}


def config_from_hf(hf: Mapping[str, Any], where: str = "config.json") -> Config:
    """Our configuration of a transformers config.json.

    Raises:
        UserError: the model type is not supported, or a field is missing.
    """
    kind = hf.get("model_type", "")
    if kind not in MODEL_TYPES:
        raise UserError(f"{where}: model_type {kind!r} is not supported; {', '.join(MODEL_TYPES)} are")
    try:
        return MODEL_TYPES[kind](hf)
    except KeyError as error:
        raise UserError(f"{where}: the field {error} is missing") from None


def load(folder: str | Path, dtype: Any = np.float32) -> tuple[Params, Config]:
    """(parameters, configuration) of a transformers folder.

    A CLIPModel gives both towers (`ClipConfig`); a LLaVA gives the whole `ModelConfig`; the others give one
    tower or decoder, to be put under params["vision"][name] or params["llm"].

    Args:
        dtype: type of the parameters.

    Raises:
        UserError: see `Safetensors`, `config_from_hf` and `engine.to_jax`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one with config.json and *.safetensors")
    config = config_from_hf(read_json(folder / "config.json"), str(folder / "config.json"))
    return to_jax(Safetensors(folder), family_of(config), config, dtype), config
