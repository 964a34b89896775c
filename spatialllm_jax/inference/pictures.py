"""What a model sees of a prompt's pictures: arrays, and which visual tokens of its row they are read as."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, UInt8

from spatialllm_jax.data import images, tiling
from spatialllm_jax.inference.prompts import ChatSettings, Layout, Prompt
from spatialllm_jax.models.config import ModelConfig


def layout(config: ModelConfig, prompt: Prompt) -> Layout:
    """How a prompt's pictures are read.

    A row holds `prompt.places` pictures one after the other, `picture_tokens` for each; with tiling, the line break is
    behind them all.

    Raises:
        ImageError: a picture is none.
    """
    if not prompt.pictured:
        return Layout(np.arange(0), ())
    width, parts = picture_tokens(config), []
    for place, one in enumerate(prompt.each):
        own = _of_one(config, one)
        parts.append(np.where(own < width, own + place * width, prompt.places * width))
    return Layout(np.concatenate(parts), tuple(len(part) for part in parts))


def picture_tokens(config: ModelConfig) -> int:
    """Visual tokens that a row holds for each picture: as many as the most tiled one has."""
    return config.num_slots * config.connector.num_tokens


def row_tokens(config: ModelConfig, pictures: int = 1) -> int:
    """Visual tokens of a row."""
    return pictures * picture_tokens(config) + (config.tiling is not None)


def longest(config: ModelConfig) -> int:
    """Positions that a picture takes, at most."""
    if config.tiling is None:
        return config.connector.num_tokens
    return max(len(_tiled(config, height, width)) for height, width in config.tiling.pinpoints)


def pixels(config: ModelConfig, settings: ChatSettings, prompt: Prompt) -> UInt8[np.ndarray, "n S S 3"]:
    """The images that a prompt's (first) picture becomes: one, or with tiling the whole and its tiles.

    Raises:
        ImageError: it is no picture.
    """
    size = settings.image_size
    if config.tiling is not None:
        # Marks are drawn before the picture is cut: they lie across tiles.
        side = config.vision[0].image_size
        picture = images.blank(side) if prompt.image is None else images.draw_regions(
            images.decode(prompt.image, prompt.image_id), prompt.marks)
        return tiling.tiles(picture, config.tiling.pinpoints, side)
    if prompt.image is None:
        return images.blank(size)[None]
    return images.load(prompt.image, size, resize=settings.resize, marks=prompt.marks, name=prompt.image_id)[None]


def _of_one(config: ModelConfig, prompt: Prompt) -> Int[np.ndarray, N]:
    if config.tiling is None:
        return np.arange(config.connector.num_tokens)
    size = config.vision[0].image_size
    width, height = (size, size) if prompt.image is None else images.image_size(prompt.image, prompt.image_id)
    return _tiled(config, height, width)


def _tiled(config: ModelConfig, height: int, width: int) -> Int[np.ndarray, N]:
    assert config.tiling is not None
    return tiling.layout(height, width, config.tiling.pinpoints, config.vision[0].image_size,
                         config.connector.grid // config.connector.merge)
