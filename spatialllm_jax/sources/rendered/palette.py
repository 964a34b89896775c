"""Named colours of objects, and the fixed colours of their details (sRGB)."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

NAMED: dict[str, tuple[float, float, float]] = {
    "red": (0.78, 0.07, 0.08), "green": (0.10, 0.55, 0.16), "blue": (0.10, 0.24, 0.78),
    "yellow": (0.95, 0.80, 0.08), "white": (0.94, 0.94, 0.93), "black": (0.07, 0.07, 0.08),
    "gray": (0.50, 0.51, 0.52), "orange": (0.95, 0.46, 0.05), "purple": (0.46, 0.14, 0.62),
    "brown": (0.42, 0.24, 0.11), "pink": (0.96, 0.52, 0.68),
}
ALL = tuple(NAMED)
FUR = ("black", "white", "brown", "gray", "orange")

DARK = (0.05, 0.05, 0.055)
RUBBER = (0.045, 0.045, 0.05)
GLASS = (0.10, 0.14, 0.19)
WINDSCREEN = (0.45, 0.62, 0.72)
METAL = (0.62, 0.64, 0.66)
STEEL = (0.36, 0.37, 0.39)
PLATE = (0.93, 0.93, 0.85)
HEADLIGHT = (1.0, 0.96, 0.72)
TAIL_LIGHT = (0.95, 0.06, 0.05)
INDICATOR = (1.0, 0.55, 0.05)
CREAM = (0.93, 0.89, 0.80)
WOOD = (0.58, 0.40, 0.22)
SHEET = (0.93, 0.94, 0.96)
LEAF = (0.12, 0.46, 0.13)
SKIN = ((0.95, 0.76, 0.62), (0.86, 0.64, 0.46), (0.66, 0.44, 0.29), (0.42, 0.27, 0.18))
HAIR = ((0.08, 0.06, 0.05), (0.30, 0.17, 0.08), (0.75, 0.58, 0.28), (0.45, 0.43, 0.42))
NOSE = (0.04, 0.03, 0.03)


def shade(colour: Sequence[float] | np.ndarray, factor: float) -> Float[np.ndarray, " 3"]:
    """A darker (factor < 1) or lighter (> 1: towards white) version of a colour."""
    base = np.asarray(colour, np.float64)
    return base * factor if factor <= 1 else 1 - (1 - base) / factor


def vary(name: str, rng: np.random.Generator) -> Float[np.ndarray, " 3"]:
    """A shade of a named colour that still deserves the name."""
    hue, saturation, value = colorsys.rgb_to_hsv(*NAMED[name])
    value = float(np.clip(value * rng.uniform(0.88, 1.06), 0, 1))
    if name not in ("white", "black", "gray"):
        hue = (hue + rng.uniform(-0.012, 0.012)) % 1.0
        saturation = float(np.clip(saturation * rng.uniform(0.88, 1.05), 0, 1))
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value))
