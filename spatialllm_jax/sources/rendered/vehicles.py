"""Vehicles, built of parts. Every builder: (length, width, height) in metres, a colour, a generator -> Mesh.

Front cues shared by all: pale yellow headlights and dark grille in front, red lights behind, a
windscreen lighter than the other windows, mirrors towards the front, and an asymmetric silhouette.
"""

from __future__ import annotations

import numpy as np

from spatialllm_jax.sources.rendered.palette import (
    DARK,
    GLASS,
    HEADLIGHT,
    INDICATOR,
    METAL,
    PLATE,
    RUBBER,
    STEEL,
    TAIL_LIGHT,
    WINDSCREEN,
    shade,
)
from spatialllm_jax.sources.rendered.primitives import (
    Colour,
    Mesh,
    box,
    ellipsoid,
    hexahedron,
    join,
    prism,
    ring,
    rounded,
    taper,
    tube,
)


def _wheel(x: float, y: float, radius: float, width: float) -> list[Mesh]:
    """A tyre with a bright hub on its outer side; y is the outer face."""
    inward = -np.sign(y) * width
    return [tube((x, y + inward, radius), (x, y, radius), radius, RUBBER, segments=14),
            tube((x, y, radius), (x, y * 1.012, radius), radius * 0.58, METAL, 0.4, segments=10)]


def _pane(corners: list[tuple[float, float, float]], colour: Colour, gloss: float = 0.7) -> Mesh:
    """A thin four-cornered plate: bottom pair, then top pair, on a slanted plane."""
    points = np.array(corners)
    normal = np.cross(points[1] - points[0], points[2] - points[0])
    normal *= 0.008 / np.linalg.norm(normal)
    return hexahedron(np.concatenate([points - normal, points + normal]), colour, gloss)


def _cabin(x0: float, x1: float, z0: float, z1: float, half: float, front: float, back: float,
           sides: float, colour: Colour) -> list[Mesh]:
    """Greenhouse: body-coloured frame with dark side glass, a light windscreen and a dark rear window."""
    parts = [taper((x0, -half, z0), (x1, half, z1), colour, 0.5, front=front, back=back, sides=sides)]
    out = 0.012

    def edge(x_bottom: float, x_top: float, t: float) -> tuple[float, float, float]:
        return x_bottom + (x_top - x_bottom) * t, half - sides * t, z0 + (z1 - z0) * t

    low, high = 0.10, 0.84
    for side in (-1, 1):
        spans = ((x0 + 0.10 * (x1 - x0), x0 + back + 0.04 * (x1 - x0), 0.49), (None, None, 0.0))
        middle = (x0 + back + x1 - front) / 2
        for which in range(2):
            if which == 0:
                bottom = (spans[0][0], middle - 0.04)
                top = (spans[0][1], middle - 0.04)
            else:
                bottom = (middle + 0.04, x1 - 0.10 * (x1 - x0))
                top = (middle + 0.04, x1 - front - 0.03 * (x1 - x0))
            corners = []
            for t, (a, b) in ((low, bottom), (high, top)):
                _, y, z = edge(0, 0, t)
                corners += [(a, side * (y + out), z), (b, side * (y + out), z)]
            parts.append(_pane(corners, GLASS))
    for bottom_x, top_x, colour_of, push in ((x1, x1 - front, WINDSCREEN, out), (x0, x0 + back, GLASS, -out)):
        corners = []
        for t in (low, high):
            x, y, z = edge(bottom_x, top_x, t)
            corners += [(x + push, -y * 0.90, z), (x + push, y * 0.90, z)]
        parts.append(_pane(corners, colour_of))
    return parts


def _lamps(x_front: float, x_back: float, half: float, z: float, size: float) -> list[Mesh]:
    parts = []
    for side in (-1, 1):
        y = side * (half - size)
        parts.append(ellipsoid((x_front, y, z), (size * 0.45, size, size * 0.8), HEADLIGHT, -0.75))
        parts.append(box((x_back - 0.03, y - size, z - size * 0.7), (x_back + 0.05, y + size, z + size * 0.9),
                         TAIL_LIGHT, -0.35))
    return parts


def car(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """Long bonnet in front, short boot or hatch behind."""
    d, w, h = length / 2, width / 2, height
    radius = 0.225 * h
    floor, belt = 0.17 * h, 0.60 * h
    hatch = rng.random() < 0.5
    tail = -d + (0.02 if hatch else 0.17) * length
    bonnet = d - rng.uniform(0.27, 0.31) * length
    body = prism(np.array([(-d, floor), (d - 0.06 * length, floor), (d, 0.24 * h), (d, 0.40 * h),
                           (d - 0.04 * length, 0.49 * h), (bonnet, 0.585 * h), (bonnet - 0.1, belt),
                           (-d + 0.06, belt), (-d, 0.52 * h)]), w, colour, 0.5)
    parts = [body, *_cabin(tail, bonnet + 0.10, belt - 0.01, h, w * 0.95, 0.24 * length * 0.62,
                           (0.05 if hatch else 0.11) * length, 0.10 * width, colour)]
    for x in (d - 0.19 * length, -d + 0.19 * length):
        for side in (-1, 1):
            parts += _wheel(x, side * w * 1.005, radius, 0.11 * width)
    parts += _lamps(d - 0.015 * length, -d, w, 0.41 * h, 0.085 * width)
    parts += [box((d - 0.03, -0.45 * w, 0.24 * h), (d + 0.02, 0.45 * w, 0.37 * h), DARK),
              box((d - 0.02, -0.16 * w, 0.20 * h), (d + 0.03, 0.16 * w, 0.25 * h), PLATE),
              box((-d - 0.03, -0.25 * w, 0.36 * h), (-d + 0.02, 0.25 * w, 0.44 * h), PLATE),
              box((-d - 0.02, -0.92 * w, floor), (-d + 0.04, 0.92 * w, 0.29 * h), DARK)]
    for side in (-1, 1):
        parts.append(rounded((bonnet - 0.16, side * w * 0.98 - 0.07, belt), (bonnet, side * w * 0.98 + 0.07,
                             belt + 0.13), 0.05, shade(colour, 0.7), 0.4, steps=1))
        for x in (0.02, -0.22):
            parts.append(box((x * length, side * w * 1.0 - 0.01, belt - 0.10), (x * length + 0.18,
                             side * w + 0.012, belt - 0.06), METAL, 0.4))
        parts.append(box((-0.40 * length, side * w - 0.004, floor), (0.36 * length, side * w + 0.004,
                         floor + 0.06), DARK))
    return join(parts)


def truck(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """A coloured cab in front, a tall pale or coloured load behind it with a gap between."""
    d, w, h = length / 2, width / 2, height
    cab_back = d - 0.25 * length
    cab_top = rng.uniform(0.74, 0.80) * h
    deck = 0.27 * h
    parts = [box((-d, -w * 0.82, 0.17 * h), (d - 0.05, w * 0.82, deck), STEEL),
             taper((cab_back, -w * 0.95, 0.14 * h), (d, w * 0.95, 0.46 * h), colour, 0.5, front=0.02)]
    parts += _cabin(cab_back, d, 0.45 * h, cab_top, w * 0.95, 0.05 * length, 0.0, 0.04 * width, colour)
    load = shade(colour, 0.82) if rng.random() < 0.6 else np.array((0.88, 0.88, 0.86))
    box_back, box_front = -d, cab_back - 0.035 * length
    parts += [box((box_back, -w, deck), (box_front, w, h), load, 0.1)]
    for t in np.linspace(0.12, 0.88, 6):
        x = box_back + t * (box_front - box_back)
        for side in (-1, 1):
            parts.append(box((x - 0.03, side * w - 0.012, deck), (x + 0.03, side * w + 0.012, h),
                             shade(load, 0.75)))
    parts += [box((box_back - 0.012, -0.02, deck + 0.1), (box_back + 0.01, 0.02, h - 0.1), DARK),
              box((box_back - 0.03, -0.12, deck + 0.5), (box_back, 0.12, deck + 0.62), STEEL),
              box((d - 0.02, -w * 0.7, 0.24 * h), (d + 0.03, w * 0.7, 0.38 * h), DARK),
              box((d - 0.03, -w * 0.95, 0.12 * h), (d + 0.06, w * 0.95, 0.19 * h), STEEL),
              box((cab_back + 0.05, -w * 0.7, cab_top), (d - 0.08 * length, w * 0.7, cab_top + 0.04 * h),
                  shade(colour, 0.6))]
    parts += _lamps(d + 0.01, -d, w * 0.93, 0.225 * h, 0.08 * width)
    radius = 0.145 * h
    for x in (d - 0.13 * length, -d + 0.15 * length, -d + 0.15 * length + 2.15 * radius):
        for side in (-1, 1):
            parts += _wheel(x, side * w * 0.99, radius, 0.13 * width)
    for side in (-1, 1):
        parts.append(box((d - 0.1, side * w * 0.98 - 0.06, 0.5 * h), (d + 0.02, side * w * 0.98 + 0.06,
                         0.64 * h), DARK))
    return join(parts)


def bus(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """A tall windscreen and a lit destination sign in front; side windows end in front of a plain tail."""
    d, w, h = length / 2, width / 2, height
    trim = np.array((0.93, 0.93, 0.90)) if rng.random() < 0.6 else shade(colour, 0.55)
    parts = [rounded((-d, -w, 0.10 * h), (d, w, h), 0.16, colour, 0.4),
             box((-d - 0.01, -w - 0.01, 0.30 * h), (d + 0.01, w + 0.01, 0.36 * h), trim),
             box((d - 0.05, -0.88 * w, 0.40 * h), (d + 0.03, 0.88 * w, 0.80 * h), WINDSCREEN, 0.8),
             box((d - 0.05, -0.02, 0.40 * h), (d + 0.035, 0.02, 0.80 * h), DARK),
             box((d - 0.05, -0.70 * w, 0.83 * h), (d + 0.03, 0.70 * w, 0.93 * h), DARK),
             box((d, -0.55 * w, 0.855 * h), (d + 0.04, 0.55 * w, 0.905 * h), INDICATOR, -0.9),
             box((-d - 0.03, -0.55 * w, 0.62 * h), (-d + 0.05, 0.55 * w, 0.82 * h), GLASS, 0.5),
             box((-d - 0.03, -0.80 * w, 0.15 * h), (-d + 0.05, 0.80 * w, 0.30 * h), DARK),
             box((d - 0.05, -0.80 * w, 0.12 * h), (d + 0.04, 0.80 * w, 0.18 * h), DARK),
             box((-0.3 * d, -0.4 * w, h - 0.03), (0.1 * d, 0.4 * w, h + 0.10), shade(trim, 0.8))]
    count = 5 if length < 9.5 else 7
    start, stop = -d + 0.16 * length, d - 0.14 * length
    step = (stop - start) / count
    for k in range(count):
        for side in (-1, 1):
            parts.append(box((start + k * step, side * w - 0.012, 0.46 * h),
                             (start + (k + 0.86) * step, side * w + 0.012, 0.78 * h), GLASS, 0.7))
    for side in (-1, 1):
        # Doors beside the driver, on both sides here, so that either flank shows where the front is.
        parts += [box((d - 0.11 * length, side * w - 0.015, 0.14 * h), (d - 0.03 * length, side * w + 0.015,
                      0.78 * h), WINDSCREEN, 0.6),
                  box((d - 0.02, side * (w + 0.06) - 0.07, 0.58 * h), (d + 0.16, side * (w + 0.06) + 0.07,
                      0.76 * h), DARK)]
    parts += _lamps(d + 0.01, -d, w * 0.95, 0.235 * h, 0.075 * width)
    radius = 0.155 * h
    for x in (d - 0.21 * length, -d + 0.22 * length):
        for side in (-1, 1):
            parts += _wheel(x, side * w * 1.005, radius, 0.12 * width)
    return join(parts)


def _spoked(x: float, radius: float, thickness: float) -> list[Mesh]:
    parts = [ring((x, 0, radius), radius, thickness, RUBBER)]
    for angle in np.arange(4) * np.pi / 4:
        dx, dz = 0.94 * radius * np.cos(angle), 0.94 * radius * np.sin(angle)
        parts.append(tube((x - dx, 0, radius - dz), (x + dx, 0, radius + dz), 0.008, METAL, segments=4))
    return parts


def bicycle(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """Handlebar, basket and lamp over the front wheel; saddle, rack and red lamp towards the rear."""
    r = 0.205 * length
    d, w, h = length / 2, width / 2, height
    front, rear = d - r, -d + r
    crank, saddle, head = (-0.06 * length, 0, 0.9 * r), (-0.16 * length, 0, 0.80 * h), (front - 0.20 * length
                          * 0.62, 0, 0.83 * h)
    thick = 0.026
    parts = _spoked(front, r, 0.032) + _spoked(rear, r, 0.032)
    for a, b in ((crank, saddle), (crank, (head[0] + 0.02, 0, 0.68 * h)), (saddle, head),
                 ((rear, 0, r), crank), ((rear, 0, r), (saddle[0] + 0.01, 0, 0.74 * h)),
                 (head, (front, 0, r))):
        parts.append(tube(a, b, thick, colour, 0.4, segments=6))
    stem = (head[0] - 0.02, 0, h - 0.02)
    parts += [tube(head, stem, 0.02, STEEL, segments=6),
              tube((stem[0], -w, stem[2]), (stem[0], w, stem[2]), 0.02, STEEL, segments=6)]
    for side in (-1, 1):
        parts.append(tube((stem[0], side * w * 0.97, stem[2]), (stem[0] - 0.15, side * w * 0.93, stem[2] - 0.01),
                          0.028, DARK, segments=6))
    parts += [prism(np.array([(saddle[0] - 0.16, 0.86 * h), (saddle[0] + 0.14, 0.86 * h),
                              (saddle[0] + 0.14, 0.88 * h), (saddle[0] - 0.16, 0.90 * h)]),
                    np.array([0.10, 0.03, 0.03, 0.10]), DARK),
              tube(saddle, (saddle[0], 0, 0.87 * h), 0.02, STEEL, segments=6),
              tube((crank[0], -0.08, crank[2]), (crank[0], 0.08, crank[2]), 0.09, STEEL, segments=10),
              box((rear - 0.14, -0.06, 2.12 * r), (saddle[0] - 0.04, 0.06, 2.12 * r + 0.03), STEEL),
              box((rear - 0.18, -0.05, 1.85 * r), (rear - 0.12, 0.05, 2.15 * r), TAIL_LIGHT, -0.4),
              taper((stem[0] + 0.09, -0.17, stem[2] - 0.26), (stem[0] + 0.36, 0.17, stem[2] - 0.03),
                    (0.62, 0.45, 0.24)),
              ellipsoid((stem[0] + 0.40, 0, stem[2] - 0.20), (0.05, 0.07, 0.07), HEADLIGHT, -0.8)]
    return join(parts)


def motorcycle(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """Raked fork, handlebar, fairing with headlight and screen in front; long seat and red lamp behind."""
    r = 0.155 * length
    d, w, h = length / 2, width / 2, height
    front, rear = d - r, -d + r + 0.04
    stem = (front - 0.17 * length, 0, 0.86 * h)
    parts = [ring((front, 0, r), r, 0.06, RUBBER), ring((rear, 0, r), r, 0.085, RUBBER),
             tube((front, -0.03, r), (front, 0.03, r), 0.62 * r, METAL, 0.5, segments=10),
             tube((rear, -0.05, r), (rear, 0.05, r), 0.62 * r, METAL, 0.5, segments=10),
             rounded((-0.17 * length, -0.17, 0.24 * h), (0.14 * length, 0.17, 0.55 * h), 0.08, STEEL, 0.3),
             ellipsoid((0.06 * length, 0, 0.68 * h), (0.17 * length, 0.17, 0.12 * h), colour, 0.6, tilt=-0.15),
             prism(np.array([(-d + 0.06, 0.74 * h), (-0.02 * length, 0.60 * h), (-0.02 * length, 0.66 * h),
                             (-d + 0.10, 0.80 * h)]), np.array([0.10, 0.16, 0.15, 0.10]), DARK),
             prism(np.array([(-d + 0.05, 0.64 * h), (-0.05 * length, 0.50 * h), (-0.05 * length, 0.62 * h),
                             (-d + 0.05, 0.76 * h)]), np.array([0.09, 0.15, 0.15, 0.09]), colour, 0.5),
             prism(np.array([(front - 0.12 * length, 0.62 * h), (front + 0.02 * length, 0.66 * h),
                             (front - 0.02 * length, 0.84 * h), (front - 0.14 * length, 0.88 * h)]),
                   np.array([0.19, 0.10, 0.10, 0.17]), colour, 0.6),
             prism(np.array([(front - 0.13 * length, 0.86 * h), (front - 0.03 * length, 0.84 * h),
                             (front - 0.12 * length, h)]), np.array([0.14, 0.10, 0.09]), WINDSCREEN, 0.8),
             ellipsoid((front + 0.01 * length, 0, 0.75 * h), (0.07, 0.11, 0.08), HEADLIGHT, -0.8),
             box((-d, -0.08, 0.68 * h), (-d + 0.07, 0.08, 0.75 * h), TAIL_LIGHT, -0.5),
             box((-d + 0.02, -0.09, 0.48 * h), (-d + 0.06, 0.09, 0.60 * h), PLATE),
             prism(np.array([(front - r * 0.8, 1.75 * r), (front + r * 0.9, 1.65 * r), (front + r * 0.5, 2.1 * r),
                             (front - r * 0.3, 2.2 * r)]), 0.08, colour, 0.5),
             tube((stem[0], -w, stem[2] + 0.02), (stem[0], w, stem[2] + 0.02), 0.022, DARK, segments=6)]
    for side in (-1, 1):
        parts += [tube((front, side * 0.09, r), (stem[0] + 0.05, side * 0.10, stem[2]), 0.032, METAL, 0.5,
                       segments=6),
                  tube((rear, side * 0.11, r), (0, side * 0.12, 0.36 * h), 0.03, STEEL, segments=6),
                  tube((stem[0], side * w * 0.8, stem[2]), (stem[0] + 0.05, side * w * 0.84, h * 0.98), 0.012,
                       DARK, segments=4),
                  ellipsoid((stem[0] + 0.05, side * w * 0.84, h * 0.97), (0.03, 0.07, 0.045), STEEL)]
    parts.append(tube((-d + 0.10, 0.20, 0.36 * h), (0.05 * length, 0.18, 0.26 * h), 0.045, METAL, 0.6))
    return join(parts)


