"""People, animals and plants, built of parts. Builders: (length, width, height), colour, generator -> Mesh."""

from __future__ import annotations

import numpy as np

from spatialllm_jax.sources.rendered.palette import DARK, HAIR, NOSE, SKIN, WOOD, shade
from spatialllm_jax.sources.rendered.primitives import (
    Colour,
    Mesh,
    box,
    ellipsoid,
    join,
    rounded,
    taper,
    tube,
)

_WHITE = (0.97, 0.97, 0.97)


def person(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """Face, light shirt front and toes point forward; hair and a backpack behind."""
    w, h = width / 2, height
    skin = SKIN[rng.integers(4)]
    hair = HAIR[rng.integers(4)]
    trousers = shade(np.array([(0.12, 0.14, 0.25), (0.25, 0.22, 0.20), (0.35, 0.36, 0.40)])[rng.integers(3)], 1.0)
    stride = rng.uniform(0.0, 0.09) * h
    hip, shoulder, neck = 0.50 * h, 0.81 * h, 0.86 * h
    parts = []
    for side in (-1, 1):
        y, step = side * 0.32 * w, side * stride
        parts += [tube((0, y, hip), (step * 0.7 + 0.01, y, 0.27 * h), 0.048 * h, trousers, end_radius=0.036 * h),
                  tube((step * 0.7 + 0.01, y, 0.27 * h), (step, y, 0.03 * h), 0.036 * h, trousers,
                       end_radius=0.026 * h),
                  rounded((step - 0.035 * h, y - 0.028 * h, 0), (step + 0.105 * h, y + 0.028 * h, 0.045 * h),
                          0.02, DARK),
                  tube((0, side * 0.80 * w, shoulder - 0.02 * h), (-step * 0.5 + 0.01, side * 0.92 * w, 0.63 * h),
                       0.036 * h, colour, end_radius=0.030 * h),
                  tube((-step * 0.5 + 0.01, side * 0.92 * w, 0.63 * h), (-step * 0.8 + 0.06 * h, side * 0.86 * w,
                       0.49 * h), 0.027 * h, skin, end_radius=0.021 * h),
                  ellipsoid((-step * 0.8 + 0.07 * h, side * 0.86 * w, 0.475 * h), (0.026 * h,) * 3, skin)]
    parts += [rounded((-0.062 * h, -0.62 * w, hip - 0.03 * h), (0.062 * h, 0.62 * w, hip + 0.06 * h), 0.05, trousers),
              ellipsoid((0, 0, 0.68 * h), (0.078 * h, 0.80 * w, 0.17 * h), colour, rings=8, segments=12),
              rounded((-0.064 * h, -0.86 * w, 0.73 * h), (0.064 * h, 0.86 * w, shoulder + 0.02 * h), 0.06, colour),
              tube((0, 0, 0.80 * h), (0.005 * h, 0, neck + 0.03 * h), 0.032 * h, skin),
              ellipsoid((0.01 * h, 0, 0.925 * h), (0.060 * h, 0.048 * h, 0.072 * h), skin, rings=8),
              ellipsoid((-0.016 * h, 0, 0.945 * h), (0.062 * h, 0.056 * h, 0.058 * h), hair, rings=8),
              ellipsoid((0.072 * h, 0, 0.915 * h), (0.014 * h, 0.010 * h, 0.014 * h), skin),
              box((0.058 * h, -0.022 * h, 0.883 * h), (0.064 * h, 0.022 * h, 0.892 * h), (0.6, 0.15, 0.15)),
              taper((0.060 * h, -0.16 * w, 0.60 * h), (0.081 * h, 0.16 * w, 0.80 * h), _WHITE)]
    for side in (-1, 1):
        parts.append(ellipsoid((0.062 * h, side * 0.021 * h, 0.937 * h), (0.009 * h, 0.010 * h, 0.009 * h), NOSE))
    pack = shade(colour, 0.45)
    parts += [rounded((-0.145 * h, -0.55 * w, 0.58 * h), (-0.06 * h, 0.55 * w, 0.80 * h), 0.05, pack),
              rounded((-0.165 * h, -0.35 * w, 0.60 * h), (-0.13 * h, 0.35 * w, 0.69 * h), 0.03, shade(pack, 0.7))]
    return join(parts)


def _leg(x: float, y: float, top: float, radius: float, colour: Colour, foot: Colour, bend: float) -> list[Mesh]:
    return [tube((x, y, top), (x + bend, y, top * 0.5), radius * 1.35, colour, end_radius=radius, segments=7),
            tube((x + bend, y, top * 0.5), (x, y, 0.02), radius, colour, end_radius=radius * 0.8, segments=7),
            rounded((x - radius * 1.1, y - radius * 1.1, 0), (x + radius * 2.2, y + radius * 1.1, radius * 1.6),
                    radius * 0.7, foot, steps=1)]


def dog(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """A long pale muzzle with a black nose and hanging ears in front; a raised tail behind."""
    d, w, h = length / 2, width / 2, height
    pale, dark = shade(colour, 1.7), shade(colour, 0.5)
    back = 0.66 * h
    parts = []
    for side in (-1, 1):
        parts += _leg(0.40 * d, side * 0.55 * w, 0.50 * h, 0.045 * h, colour, pale, 0.01)
        parts += _leg(-0.62 * d, side * 0.55 * w, 0.50 * h, 0.050 * h, colour, pale, -0.05 * h)
    parts += [ellipsoid((-0.12 * d, 0, 0.56 * h), (0.66 * d, 0.78 * w, 0.165 * h), colour, rings=8, segments=12),
              ellipsoid((0.30 * d, 0, 0.55 * h), (0.28 * d, 0.86 * w, 0.20 * h), colour, rings=8),
              ellipsoid((0.44 * d, 0, 0.52 * h), (0.16 * d, 0.55 * w, 0.13 * h), pale),
              tube((0.36 * d, 0, 0.62 * h), (0.58 * d, 0, 0.84 * h), 0.115 * h, colour, end_radius=0.10 * h),
              tube((0.43 * d, 0, 0.70 * h), (0.46 * d, 0, 0.735 * h), 0.126 * h, (0.8, 0.1, 0.1), segments=10),
              ellipsoid((0.62 * d, 0, 0.87 * h), (0.17 * d, 0.62 * w, 0.13 * h), colour, rings=8),
              tube((0.66 * d, 0, 0.84 * h), (0.96 * d, 0, 0.81 * h), 0.082 * h, pale, end_radius=0.055 * h),
              ellipsoid((0.97 * d, 0, 0.835 * h), (0.03 * d + 0.01, 0.036 * h, 0.036 * h), NOSE, 0.5),
              tube((-0.74 * d, 0, back - 0.04 * h), (-0.97 * d, 0, 0.93 * h), 0.045 * h, colour,
                   end_radius=0.018 * h)]
    for side in (-1, 1):
        parts += [ellipsoid((0.56 * d, side * 0.66 * w, 0.84 * h), (0.06 * d, 0.13 * w, 0.12 * h), dark),
                  ellipsoid((0.755 * d, side * 0.34 * w, 0.905 * h), (0.02 * h, 0.022 * h, 0.025 * h), NOSE, 0.5)]
    return join(parts)


def cat(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """A round face with a white muzzle and pointed ears in front; a long upright tail behind."""
    d, w, h = length / 2, width / 2, height
    stripe, pale = shade(colour, 0.5), shade(colour, 1.9)
    parts = []
    for side in (-1, 1):
        parts += _leg(0.36 * d, side * 0.52 * w, 0.42 * h, 0.045 * h, colour, _WHITE, 0.0)
        parts += _leg(-0.52 * d, side * 0.52 * w, 0.42 * h, 0.05 * h, colour, _WHITE, -0.05 * h)
    parts += [ellipsoid((-0.10 * d, 0, 0.47 * h), (0.60 * d, 0.85 * w, 0.17 * h), colour, rings=8, segments=12),
              ellipsoid((0.62 * d, 0, 0.72 * h), (0.24 * d, 0.92 * w, 0.17 * h), colour, rings=8, segments=12),
              tube((0.32 * d, 0, 0.50 * h), (0.56 * d, 0, 0.66 * h), 0.12 * h, colour, segments=8),
              ellipsoid((0.80 * d, 0, 0.675 * h), (0.09 * d, 0.45 * w, 0.07 * h), _WHITE),
              ellipsoid((0.90 * d, 0, 0.70 * h), (0.03 * d, 0.14 * w, 0.022 * h), (0.85, 0.4, 0.45)),
              ellipsoid((0.46 * d, 0, 0.42 * h), (0.10 * d, 0.50 * w, 0.10 * h), pale),
              tube((-0.64 * d, 0, 0.52 * h), (-0.92 * d, 0, 0.72 * h), 0.042 * h, colour),
              tube((-0.92 * d, 0, 0.72 * h), (-0.88 * d, 0, 1.0 * h), 0.040 * h, stripe, end_radius=0.025 * h)]
    for x in (-0.4, -0.15, 0.1):
        parts.append(ellipsoid((x * d, 0, 0.52 * h), (0.045 * d, 0.80 * w, 0.135 * h), stripe))
    for side in (-1, 1):
        parts += [tube((0.58 * d, side * 0.52 * w, 0.83 * h), (0.60 * d, side * 0.66 * w, 0.97 * h), 0.055 * h,
                       colour, end_radius=0.004, segments=6),
                  ellipsoid((0.815 * d, side * 0.40 * w, 0.765 * h), (0.03 * d, 0.14 * w, 0.030 * h), (0.35, 0.8, 0.2),
                            -0.3),
                  ellipsoid((0.838 * d, side * 0.40 * w, 0.765 * h), (0.02 * d, 0.05 * w, 0.024 * h), NOSE)]
    return join(parts)


def horse(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """A raised neck with a dark mane and a long head with a white blaze in front; a hanging tail behind."""
    d, w, h = length / 2, width / 2, height
    mane = shade(colour, 0.35) if float(np.mean(colour)) > 0.25 else np.array((0.55, 0.50, 0.42))
    hoof = DARK
    parts = []
    for side in (-1, 1):
        parts += _leg(0.36 * d, side * 0.52 * w, 0.48 * h, 0.034 * h, colour, hoof, 0.0)
        parts += _leg(-0.66 * d, side * 0.52 * w, 0.48 * h, 0.036 * h, colour, hoof, -0.03 * h)
    parts += [ellipsoid((-0.16 * d, 0, 0.54 * h), (0.66 * d, 0.94 * w, 0.135 * h), colour, rings=8, segments=12),
              ellipsoid((-0.58 * d, 0, 0.56 * h), (0.26 * d, w, 0.15 * h), colour, rings=8),
              ellipsoid((0.34 * d, 0, 0.54 * h), (0.24 * d, 0.94 * w, 0.15 * h), colour, rings=8),
              tube((0.34 * d, 0, 0.58 * h), (0.66 * d, 0, 0.90 * h), 0.105 * h, colour, end_radius=0.062 * h),
              tube((0.60 * d, 0, 0.915 * h), (0.95 * d, 0, 0.74 * h), 0.066 * h, colour, end_radius=0.042 * h),
              ellipsoid((0.95 * d, 0, 0.735 * h), (0.05 * d, 0.20 * w + 0.01, 0.038 * h), shade(colour, 0.55)),
              tube((0.74 * d, 0, 0.905 * h), (0.93 * d, 0, 0.795 * h), 0.022 * h, _WHITE, segments=6),
              tube((-0.80 * d, 0, 0.63 * h), (-0.94 * d, 0, 0.55 * h), 0.03 * h, mane),
              tube((-0.94 * d, 0, 0.56 * h), (-0.95 * d, 0, 0.22 * h), 0.042 * h, mane, end_radius=0.02 * h)]
    for t in np.linspace(0.05, 0.95, 6):
        parts.append(ellipsoid(((0.24 + 0.30 * t) * d, 0, (0.66 + 0.30 * t) * h), (0.065 * d, 0.09 * w + 0.01,
                               0.06 * h), mane, tilt=-0.6))
    for side in (-1, 1):
        parts += [tube((0.58 * d, side * 0.13 * w, 0.94 * h), (0.585 * d, side * 0.17 * w, h), 0.022 * h, colour,
                       end_radius=0.004, segments=6),
                  ellipsoid((0.72 * d, side * 0.215 * w, 0.885 * h), (0.022 * d, 0.03 * w, 0.013 * h), NOSE, 0.6)]
    return join(parts)


def potted_plant(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """Leaves in the object's colour over an earthen pot: no front."""
    r, h = min(length, width) / 2, height
    pot = np.array([(0.62, 0.32, 0.20), (0.85, 0.83, 0.78), (0.30, 0.31, 0.33)])[rng.integers(3)]
    parts = [tube((0, 0, 0), (0, 0, 0.34 * h), 0.42 * r, pot, 0.1, end_radius=0.60 * r, segments=14),
             tube((0, 0, 0.30 * h), (0, 0, 0.35 * h), 0.66 * r, pot, 0.1, segments=14),
             tube((0, 0, 0.3 * h), (0, 0, 0.6 * h), 0.06 * r, (0.30, 0.22, 0.12))]
    for k in range(14):
        angle = k * 2.4 + rng.uniform(0, 0.5)
        out, up = rng.uniform(0.35, 0.72) * r, rng.uniform(0.48, 0.90) * h
        parts.append(ellipsoid((out * np.cos(angle), out * np.sin(angle), up), (0.34 * r, 0.34 * r, 0.10 * h),
                               shade(colour, rng.uniform(0.7, 1.15)), tilt=rng.uniform(-0.5, 0.5), rings=5,
                               segments=7))
    return join(parts)


def tree(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """A trunk under a crown of blobs: no front."""
    r, h = min(length, width) / 2, height
    bark = np.array(WOOD) * rng.uniform(0.4, 0.7)
    parts = [tube((0, 0, 0), (0, 0, 0.55 * h), 0.05 * h, bark, end_radius=0.03 * h)]
    for k in range(8):
        angle, out = k * 2.4, 0.48 * r * (k > 0)
        parts.append(ellipsoid((out * np.cos(angle), out * np.sin(angle), rng.uniform(0.52, 0.80) * h),
                               (0.55 * r, 0.55 * r, 0.20 * h), shade(colour, rng.uniform(0.75, 1.1)), rings=6,
                               segments=9))
    return join(parts)
