"""A single frozen vision encoder out of any folder of weights, or with random weights of the same shape."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import ClipConfig, ModelConfig, VisionConfig
from spatialllm_jax.models.linear import Params
from spatialllm_jax.models.store import Weights, merged
from spatialllm_jax.models.vit import ViT


def encoders_of(config: Any) -> tuple[VisionConfig, ...]:
    """The vision encoders of any model's configuration."""
    if isinstance(config, ModelConfig):
        return config.vision
    return (config.vision,) if isinstance(config, ClipConfig) else (config,) if isinstance(config, VisionConfig) else ()


def encoder_config(weights: Weights, name: str = "") -> VisionConfig:
    """The encoder called `name` in a folder, or its only one. Raises UserError when there is no such one."""
    found = encoders_of(weights.config)
    chosen = [encoder for encoder in found if name in ("", encoder.name)]
    if len(chosen) != 1:
        has = ", ".join(encoder.name for encoder in found) or "no vision encoder"
        raise UserError(f"{weights.where} has {has}; " + (f"{name!r} is not one of them" if name else "name one"))
    return chosen[0]


def load_encoder(weights: Weights, name: str = "", *, image_size: int = 0) -> tuple[VisionConfig, Params]:
    """Configuration and parameters of one encoder.

    Args:
        image_size: pixels a side that it is to see; 0 for its own. Positions are interpolated.
    """
    encoder = encoder_config(weights, name)
    prefix = f"vision/{encoder.name}"
    params = traverse_util.unflatten_dict(merged(weights).load(prefix), sep="/")["vision"][encoder.name]
    return resized(encoder, image_size), params


def random_encoder(encoder: VisionConfig, seed: int) -> Params:
    """Random parameters: what an encoder's shape alone gives, without its training."""
    pixels = jnp.zeros((1, encoder.image_size, encoder.image_size, 3))
    return jax.jit(ViT(encoder).init)(jax.random.key(seed), pixels)["params"]


def resized(encoder: VisionConfig, image_size: int) -> VisionConfig:
    """The encoder for another picture size. Raises UserError when that is no multiple of the patch."""
    if image_size < 0 or image_size % encoder.patch_size:
        raise UserError(f"image size {image_size} is not a multiple of {encoder.name}'s patch of {encoder.patch_size} "
                        f"pixels; give {max(1, round(image_size / encoder.patch_size)) * encoder.patch_size}, or 0 for "
                        "its own")
    if not image_size:
        return encoder
    return dataclasses.replace(encoder, image_size=image_size, pretrain_grid=encoder.position_grid)
