"""LLaVA-NeXT (LLaVA-1.6): LLaVA with pictures in tiles, as transformers' LlavaNextForConditionalGeneration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convert import llava
from convert.rules import Rule
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import ModelConfig, Tiling

# What transformers takes when config.json has none: (height, width).
PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


def rules(config: ModelConfig) -> list[Rule]:
    """LLaVA's rules and the line break between rows of visual tokens; file names first, names in memory second."""
    return [*llava.rules(config), Rule("image_newline", ("image_newline", "model.image_newline"))]


def config_from_hf(hf: Mapping[str, Any]) -> ModelConfig:
    """Our configuration of a transformers config.json (model_type llava_next).

    Raises:
        UserError: the language model is not a Llama (or a Mistral that attends without a window).
    """
    text = hf["text_config"]
    kind = text.get("model_type", "llama")
    # Mistral has a window unless its file says null.
    if kind not in ("llama", "mistral") or (kind == "mistral" and text.get("sliding_window", 4096) is not None):
        raise UserError(f"config.json: text_config.model_type {kind!r} is not supported; llama is, and mistral "
                        "with sliding_window null")
    pinpoints = hf.get("image_grid_pinpoints") or PINPOINTS
    return llava.config_from_hf(hf).replace(
        tiling=Tiling(tuple((int(height), int(width)) for height, width in pinpoints)))


def config_to_hf(config: ModelConfig, image_token_id: int | None = None) -> dict[str, Any]:
    """config.json of a LlavaNextForConditionalGeneration; see `llava.config_to_hf`."""
    assert config.tiling is not None
    found = llava.config_to_hf(config, image_token_id)
    return {**found, "model_type": "llava_next", "architectures": ["LlavaNextForConditionalGeneration"],
            "image_grid_pinpoints": [list(pair) for pair in config.tiling.pinpoints]}
