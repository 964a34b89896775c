"""Furniture and appliances, built of parts. Builders: (length, width, height), colour, generator -> Mesh."""

from __future__ import annotations

import numpy as np

from spatialllm_jax.sources.rendered.palette import CREAM, DARK, GLASS, METAL, SHEET, STEEL, WOOD, shade
from spatialllm_jax.sources.rendered.primitives import Colour, Mesh, box, join, rounded, taper, tube


def _legs(x0: float, x1: float, half: float, top: float, thickness: float, colour: Colour) -> list[Mesh]:
    t = thickness
    return [box((x - t, y - t, 0), (x + t, y + t, top), colour)
            for x in (x0 + t, x1 - t) for y in (-half + t, half - t)]


def chair(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """A tall backrest behind the seat; the seat's open side is the front."""
    d, w, h = length / 2, width / 2, height
    seat = 0.47 * h
    frame = shade(colour, 0.45) if rng.random() < 0.5 else np.array(WOOD) * rng.uniform(0.5, 1.0)
    parts = _legs(-d, d, w, seat, 0.022, frame)
    parts += [rounded((-d, -w, seat - 0.05), (d, w, seat + 0.05), 0.04, colour, 0.1),
              taper((-d, -w, seat), (-d + 0.07, w, h), colour, 0.1, front=0.03, sides=0.02)]
    if rng.random() < 0.4:
        for side in (-1, 1):
            y = side * (w - 0.03)
            parts += [box((-d + 0.04, y - 0.025, seat + 0.19), (0.55 * d, y + 0.025, seat + 0.23), frame),
                      box((0.45 * d, y - 0.02, seat), (0.55 * d, y + 0.02, seat + 0.2), frame)]
    return join(parts)


def sofa(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """Backrest and armrests close three sides; cushions look out of the fourth, the front."""
    d, w, h = length / 2, width / 2, height
    arm, back, seat = 0.09 * width + 0.02, 0.24 * length, 0.44 * h
    light = shade(colour, 1.35)
    seats = 2 if width < 1.75 else 3
    parts = [rounded((-d, -w, 0.07), (d - 0.03, w, seat - 0.05), 0.04, shade(colour, 0.8)),
             rounded((-d, -w, 0.07), (-d + back, w, h), 0.09, colour)]
    for side in (-1, 1):
        low, high = sorted((side * w, side * (w - arm)))
        parts.append(rounded((-d, low, 0.07), (d - 0.02, high, 0.70 * h), 0.07, colour))
    step = 2 * (w - arm) / seats
    for k in range(seats):
        y = -w + arm + k * step
        parts += [rounded((-d + back * 0.8, y + 0.01, seat - 0.10), (d, y + step - 0.01, seat + 0.06), 0.06, light),
                  rounded((-d + back * 0.7, y + 0.02, seat), (-d + back * 1.35, y + step - 0.02, h * 0.93), 0.08,
                          light)]
    parts += _legs(-d + 0.05, d - 0.08, w - 0.05, 0.08, 0.025, DARK)
    return join(parts)


def television(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """A lit screen in front; behind, a casing with a hump, vents and a cable."""
    d, w, h = length / 2, width / 2, height
    foot = 0.09 * h
    panel = -d + 0.42 * length, -d + 0.66 * length
    rim = 0.035 * h + 0.01
    parts = [box((-d, -0.42 * w, 0), (d, 0.42 * w, 0.018), shade(colour, 0.7)),
             box((-0.03, -0.07, 0.01), (0.03, 0.07, foot + 0.05), shade(colour, 0.7)),
             box((panel[0], -w, foot), (panel[1], w, h), colour, 0.3),
             taper((-d + 0.12 * length, -0.62 * w, foot + 0.12 * h), (panel[0], 0.62 * w, 0.72 * h),
                   shade(colour, 0.75))]
    x = panel[1]
    low_y, high_y, low_z, high_z = -w + rim, w - rim, foot + rim * 1.6, h - rim
    sky, land = ((0.35, 0.62, 0.95), (0.25, 0.62, 0.30)) if rng.random() < 0.5 else ((0.95, 0.62, 0.30),
                                                                                     (0.35, 0.20, 0.50))
    horizon = low_z + rng.uniform(0.35, 0.55) * (high_z - low_z)
    parts += [box((x, low_y, horizon), (x + 0.004, high_y, high_z), sky, -0.75),
              box((x, low_y, low_z), (x + 0.004, high_y, horizon), land, -0.65),
              tube((x, 0.45 * w, high_z - 0.2 * h), (x + 0.006, 0.45 * w, high_z - 0.2 * h), 0.09 * h,
                   (1.0, 0.97, 0.85), -0.9)]
    for k in range(4):
        z = foot + (0.25 + 0.1 * k) * h
        parts.append(box((-d + 0.12 * length - 0.004, -0.4 * w, z), (-d + 0.12 * length + 0.06, 0.4 * w,
                         z + 0.03 * h), DARK))
    return join(parts)


def refrigerator(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """Two doors with a dark gap, long handles and a water dispenser in front; coils behind."""
    d, w, h = length / 2, width / 2, height
    split = rng.uniform(0.34, 0.42) * h if rng.random() < 0.5 else rng.uniform(0.60, 0.68) * h
    hinge = 1 if rng.random() < 0.5 else -1
    handle = METAL if float(np.mean(colour)) < 0.6 else (0.15, 0.15, 0.16)
    door = d - 0.09
    parts = [box((-d + 0.03, -w, 0.05), (door, w, h), shade(colour, 0.82)),
             box((door, -w + 0.01, 0.06), (door + 0.02, w - 0.01, h - 0.01), DARK),
             rounded((door + 0.015, -w, 0.07), (d - 0.035, w, split - 0.012), 0.02, colour, 0.35),
             rounded((door + 0.015, -w, split + 0.012), (d - 0.035, w, h), 0.02, colour, 0.35),
             box((-d + 0.04, -w + 0.04, 0), (d - 0.12, w - 0.04, 0.07), DARK),
             box((-d + 0.015, -w + 0.06, 0.1), (-d + 0.04, w - 0.06, 0.35), DARK)]
    for low, high in ((max(0.12, split - 0.45), split - 0.06), (split + 0.06, min(split + 0.55, h - 0.1))):
        y = hinge * (w - 0.07)
        parts.append(tube((d - 0.015, y, low), (d - 0.015, y, high), 0.017, handle, 0.6))
    y = -hinge * 0.25 * w
    middle = (split + h) / 2
    parts.append(box((d - 0.05, y - 0.10, middle - 0.14), (d - 0.028, y + 0.10, middle + 0.14), DARK, 0.3))
    for z in np.linspace(0.42, h - 0.15, 9):
        parts.append(tube((-d + 0.012, -w + 0.08, z), (-d + 0.012, w - 0.08, z), 0.011, STEEL, segments=4))
    return join(parts)


def desk(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """Drawers with handles and room for the knees in front; a closed panel behind."""
    d, w, h = length / 2, width / 2, height
    side = 1 if rng.random() < 0.5 else -1
    dark = shade(colour, 0.72)
    parts = [box((-d, -w, h - 0.045), (d, w, h), colour, 0.15),
             box((-d + 0.03, -w + 0.03, 0.10), (-d + 0.06, w - 0.03, h - 0.04), dark),
             box((-d + 0.03, -side * (w - 0.03) - 0.02, 0), (d - 0.04, -side * (w - 0.03) + 0.02, h - 0.04), colour)]
    low, high = sorted((side * (w - 0.03), side * (w - 0.03 - 0.34 * width)))
    parts.append(box((-d + 0.03, low, 0.04), (d - 0.05, high, h - 0.04), dark))
    for k in range(3):
        z0 = 0.07 + k * (h - 0.13) / 3
        z1 = z0 + (h - 0.13) / 3 - 0.025
        parts += [box((d - 0.06, low + 0.015, z0), (d - 0.03, high - 0.015, z1), shade(colour, 1.25), 0.1),
                  box((d - 0.035, (low + high) / 2 - 0.07, z1 - 0.075), (d - 0.01, (low + high) / 2 + 0.07,
                      z1 - 0.045), STEEL, 0.4)]
    return join(parts)


def table(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """Four legs under a top: the same from opposite sides."""
    d, w, h = length / 2, width / 2, height
    return join([box((-d, -w, h - 0.05), (d, w, h), colour, 0.15),
                 box((-d + 0.06, -w + 0.06, h - 0.12), (d - 0.06, w - 0.06, h - 0.05), shade(colour, 0.75)),
                 *_legs(-d + 0.03, d - 0.03, w - 0.03, h - 0.05, 0.035, shade(colour, 0.85))])


def bed(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """A tall headboard and pillows at the head; the foot end is the front."""
    d, w, h = length / 2, width / 2, height
    frame = np.array(WOOD) * rng.uniform(0.55, 1.05)
    mattress, fold = 0.52 * h, -d + 0.34 * length
    parts = [box((-d, -w, 0), (-d + 0.07, w, h), frame, 0.1),
             box((-d + 0.05, -w, 0.12), (d, w, 0.28 * h), frame),
             rounded((-d + 0.07, -w + 0.03, 0.26 * h), (d - 0.04, w - 0.03, mattress), 0.06, SHEET),
             rounded((fold, -w - 0.005, 0.20 * h), (d + 0.0, w + 0.005, mattress + 0.05), 0.05, colour),
             rounded((fold - 0.12, -w + 0.01, mattress - 0.02), (fold + 0.05, w - 0.01, mattress + 0.065), 0.04,
                     shade(colour, 1.5))]
    pillows = 1 if width < 1.2 else 2
    step = 2 * (w - 0.06) / pillows
    for k in range(pillows):
        y = -w + 0.06 + k * step
        parts.append(rounded((-d + 0.10, y + 0.05, mattress - 0.02), (-d + 0.48, y + step - 0.05, mattress + 0.13),
                             0.09, (0.97, 0.97, 0.98)))
    parts += _legs(-d, d, w, 0.13, 0.03, frame)
    return join(parts)


def bookshelf(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """Books in open shelves in front; a closed panel behind."""
    d, w, h = length / 2, width / 2, height
    t = 0.025
    shelves = int(np.clip(round(height / 0.36), 3, 6))
    step = (h - t) / shelves
    parts = [box((-d, -w, 0), (-d + 0.02, w, h), shade(colour, 0.8)),
             box((-d, -w, 0), (d, -w + t, h), colour), box((-d, w - t, 0), (d, w, h), colour)]
    parts += [box((-d, -w, k * step), (d, w, k * step + t), colour) for k in range(shelves + 1)]
    for k in range(shelves):
        y = -w + t + 0.01
        while y < w - t - 0.08:
            thick = rng.uniform(0.05, 0.11)
            if rng.random() < 0.85:
                tall = step * rng.uniform(0.55, 0.85)
                hue = np.array([(0.75, 0.2, 0.2), (0.2, 0.35, 0.65), (0.85, 0.75, 0.4), (0.25, 0.5, 0.35),
                                (0.9, 0.9, 0.85), (0.3, 0.2, 0.35)])[rng.integers(6)]
                parts.append(box((-d + 0.03, y, k * step + t), (d - rng.uniform(0.03, 0.08), min(y + thick, w - t)
                                 - 0.006, k * step + t + tall), hue))
            y += thick
    return join(parts)


def cabinet(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """Two doors with a gap and knobs in front; plain sides and back."""
    d, w, h = length / 2, width / 2, height
    plinth, drawer = 0.07, 0.76 * h
    parts = [box((-d, -w, plinth), (d - 0.025, w, h - 0.03), shade(colour, 0.75)),
             box((-d, -w, h - 0.035), (d, w, h), colour, 0.15),
             box((-d + 0.02, -w + 0.03, 0), (d - 0.06, w - 0.03, plinth), DARK),
             box((d - 0.03, -w + 0.01, plinth), (d - 0.018, w - 0.01, h - 0.04), DARK)]
    panel = shade(colour, 1.15)
    for side in (-1, 1):
        low, high = sorted((side * 0.012, side * (w - 0.012)))
        parts += [box((d - 0.025, low, plinth + 0.012), (d - 0.005, high, drawer - 0.012), panel, 0.15),
                  box((d - 0.008, low + 0.05, plinth + 0.06), (d + 0.0, high - 0.05, drawer - 0.06), colour, 0.15),
                  tube((d, side * 0.06, 0.5 * h), (d + 0.03, side * 0.06, 0.5 * h), 0.022, METAL, 0.6),
                  box((d - 0.025, low, drawer + 0.012), (d - 0.005, high, h - 0.05), panel, 0.15),
                  box((d - 0.006, side * w * 0.5 - 0.07, 0.865 * h), (d + 0.025, side * w * 0.5 + 0.07,
                      0.895 * h), METAL, 0.5)]
    return join(parts)


def washing_machine(length: float, width: float, height: float, colour: Colour,
                    rng: np.random.Generator) -> Mesh:
    """A round glass door and a dark control panel in front; pipes behind."""
    d, w, h = length / 2, width / 2, height
    parts = [rounded((-d + 0.02, -w, 0.02), (d - 0.04, w, h), 0.02, colour, 0.3),
             box((d - 0.05, -w + 0.01, 0.85 * h), (d - 0.03, w - 0.01, 0.985 * h), DARK),
             box((d - 0.05, 0.15 * w, 0.89 * h), (d - 0.02, 0.8 * w, 0.95 * h), (0.35, 0.85, 0.95), -0.7),
             tube((d - 0.05, -0.55 * w, 0.92 * h), (d, -0.55 * w, 0.92 * h), 0.035, METAL, 0.5),
             tube((d - 0.06, 0, 0.45 * h), (d - 0.02, 0, 0.45 * h), 0.66 * w, METAL, 0.5, segments=20),
             tube((d - 0.06, 0, 0.45 * h), (d - 0.01, 0, 0.45 * h), 0.52 * w, GLASS, 0.8, segments=20),
             box((-d + 0.0, -0.6 * w, 0.2 * h), (-d + 0.03, 0.6 * w, 0.8 * h), STEEL),
             tube((-d + 0.01, 0.75 * w, 0.2), (-d + 0.01, 0.75 * w, 0.75 * h), 0.02, DARK, segments=6)]
    return join(parts)


def stool(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """A round seat on splayed legs: no front."""
    r, h = min(length, width) / 2, height
    wood = np.array(WOOD) * rng.uniform(0.5, 1.0)
    parts = [tube((0, 0, h - 0.06), (0, 0, h), r, colour, 0.2, segments=18)]
    for angle in np.arange(4) * np.pi / 2 + np.pi / 4:
        c, s = np.cos(angle), np.sin(angle)
        parts.append(tube((0.95 * r * c, 0.95 * r * s, 0), (0.6 * r * c, 0.6 * r * s, h - 0.05), 0.02, wood,
                          segments=6))
    parts.append(tube((0, 0, 0.30 * h), (0, 0, 0.33 * h), 0.82 * r, wood, segments=12))
    return join(parts)


def lamp(length: float, width: float, height: float, colour: Colour, rng: np.random.Generator) -> Mesh:
    """A coloured shade over a stem: no front."""
    r, h = min(length, width) / 2, height
    drop = min(0.42 * h, 1.3 * r + 0.05)
    return join([tube((0, 0, 0), (0, 0, 0.03), 0.62 * r, STEEL, 0.3, segments=16),
                 tube((0, 0, 0), (0, 0, h - drop * 0.7), 0.018 + 0.03 * r, METAL, 0.5),
                 tube((0, 0, h - drop), (0, 0, h), r, colour, -0.25, end_radius=0.62 * r, segments=18),
                 tube((0, 0, h - drop - 0.002), (0, 0, h - drop + 0.01), 0.9 * r, CREAM, -0.9, segments=18)])
