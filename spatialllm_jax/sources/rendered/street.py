"""Street furniture without a front. Builders: (length, width, height), colour, generator -> Mesh."""

from __future__ import annotations

import itertools

import numpy as np

from spatialllm_jax.sources.rendered.palette import DARK, shade
from spatialllm_jax.sources.rendered.primitives import Colour, Mesh, box, join, tube


def barrel(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """A drum with two hoops."""
    r, h = min(length, width) / 2, height
    parts = [tube((0, 0, 0), (0, 0, h), 0.95 * r, colour, 0.3, segments=18),
             tube((0, 0, h - 0.03), (0, 0, h + 0.005), 0.86 * r, shade(colour, 0.6), segments=18)]
    parts += [tube((0, 0, t * h), (0, 0, t * h + 0.035), r, shade(colour, 0.75), 0.3, segments=18)
              for t in (0.0, 0.33, 0.64, 0.955)]
    return join(parts)


def traffic_cone(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """A cone with two white bands on a square foot."""
    r, h = min(length, width) / 2, height
    parts = [box((-r, -r, 0), (r, r, 0.05 * h), DARK)]
    levels = (0.05, 0.32, 0.50, 0.62, 0.78, 1.0)
    for k, (low, high) in enumerate(itertools.pairwise(levels)):
        radius = [0.72 * r * (1 - 0.88 * (z - 0.05) / 0.95) for z in (low, high)]
        parts.append(tube((0, 0, low * h), (0, 0, high * h), radius[0], (0.97, 0.97, 0.95) if k % 2 else colour,
                          end_radius=radius[1], segments=16))
    return join(parts)
