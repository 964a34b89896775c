"""LLaVA-NeXT's any resolution: a picture as one small square and several tiles, and the order of their tokens.

A picture is scaled into the canvas (one of the model's pinpoints) that keeps most of its pixels, with black
borders; the canvas is cut into tiles of the encoder's size. In front goes the whole picture, squeezed to one
square. The language model reads the square's tokens, then the canvas row by row without the borders, a line
break after every row. (Liu et al., 2024; checked against transformers' LlavaNext.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from einops import rearrange
from jaxtyping import Int, UInt8
from PIL import Image

Pinpoints = Sequence[tuple[int, int]]


def best_resolution(height: int, width: int, pinpoints: Pinpoints) -> tuple[int, int]:
    """The canvas (height, width) for a picture of `height` x `width` pixels.

    The one on which most of the picture's pixels survive; among those the smallest, then the first.
    """
    def merit(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[1] / width, canvas[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas[0] * canvas[1]

    return max(pinpoints, key=merit)


def tiles(image: UInt8[np.ndarray, "H W 3"], pinpoints: Pinpoints, size: int) -> UInt8[np.ndarray, "n S S 3"]:
    """The whole picture squeezed to `size` x `size`, then the tiles of its canvas row by row (bicubic)."""
    height, width = image.shape[:2]
    tall, wide = best_resolution(height, width, pinpoints)
    across, down = wide / width, tall / height
    # Rounded up on the side that leaves borders, as transformers does.
    if across < down:
        new_height, new_width = min(math.ceil(height * across), tall), wide
    else:
        new_height, new_width = tall, min(math.ceil(width * down), wide)
    canvas = np.zeros((tall, wide, 3), np.uint8)
    top, left = (tall - new_height) // 2, (wide - new_width) // 2
    canvas[top:top + new_height, left:left + new_width] = _scaled(image, new_height, new_width)
    cut = rearrange(canvas, "(r p) (c q) k -> (r c) p q k", p=size, q=size)
    return np.concatenate([_scaled(image, size, size)[None], cut])


def layout(height: int, width: int, pinpoints: Pinpoints, size: int, side: int) -> Int[np.ndarray, "N"]:
    """Which visual token stands at each position that a picture of `height` x `width` pixels takes.

    Args:
        size: side of a tile in pixels.
        side: side of a tile in tokens.

    Returns:
        Indices into the tokens of `tiles`, `side * side` for each; the line break is behind the tokens of the
        most tiles that `pinpoints` allow, at `ModelConfig.num_slots * side * side`.
    """
    tall, wide = best_resolution(height, width, pinpoints)
    rows, columns = tall // size, wide // size
    numbers = np.arange(rows * columns * side * side).reshape(rows, columns, side, side) + side * side
    grid = rearrange(numbers, "r c p q -> (r p) (c q)")
    # Borders are cut symmetrically in whole tokens; rounding first keeps float noise from costing a row.
    if width / height > grid.shape[1] / grid.shape[0]:
        border = (grid.shape[0] - int(round(height * (grid.shape[1] / width), 7))) // 2
        grid = grid[border:grid.shape[0] - border]
    else:
        border = (grid.shape[1] - int(round(width * (grid.shape[0] / height), 7))) // 2
        grid = grid[:, border:grid.shape[1] - border]
    newline = (1 + max((h // size) * (w // size) for h, w in pinpoints)) * side * side
    lines = np.concatenate([grid, np.full((len(grid), 1), newline)], axis=1)
    return np.concatenate([np.arange(side * side), lines.reshape(-1)]).astype(np.int32)


def _scaled(image: UInt8[np.ndarray, "H W 3"], height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
