"""What surrounds the objects: a room or a street, its light, and the complete drawing of a scene."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from spatialllm_jax.sources.rendered.layout import Placed
from spatialllm_jax.sources.rendered.primitives import Colour, box, join, rotate, rotation_z
from spatialllm_jax.sources.rendered.renderer import Drawing, View, interleave

_FLOORS = (
    ("tiles", ((0.80, 0.78, 0.74), (0.72, 0.69, 0.64), (0.55, 0.53, 0.50))),
    ("tiles", ((0.86, 0.86, 0.86), (0.60, 0.62, 0.65), (0.50, 0.50, 0.50))),
    ("tiles", ((0.74, 0.52, 0.42), (0.70, 0.48, 0.38), (0.55, 0.45, 0.40))),
    ("planks", ((0.66, 0.47, 0.30), (0.66, 0.47, 0.30), (0.3, 0.2, 0.1))),
    ("planks", ((0.52, 0.36, 0.24), (0.52, 0.36, 0.24), (0.3, 0.2, 0.1))),
    ("planks", ((0.76, 0.66, 0.53), (0.76, 0.66, 0.53), (0.3, 0.2, 0.1))),
    ("carpet", ((0.62, 0.58, 0.53), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
    ("carpet", ((0.42, 0.47, 0.55), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
    ("carpet", ((0.50, 0.55, 0.48), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
)
_WALLS = ((0.90, 0.88, 0.83), (0.82, 0.86, 0.88), (0.86, 0.84, 0.78), (0.78, 0.84, 0.78), (0.88, 0.80, 0.76),
          (0.80, 0.80, 0.84), (0.93, 0.93, 0.93), (0.72, 0.76, 0.80))
_FACADES = ((0.70, 0.62, 0.54), (0.78, 0.74, 0.68), (0.62, 0.50, 0.44), (0.66, 0.68, 0.70), (0.80, 0.76, 0.62),
            (0.58, 0.60, 0.64))
_SKIES = (((0.30, 0.52, 0.84), (0.78, 0.87, 0.95)), ((0.42, 0.58, 0.80), (0.85, 0.88, 0.90)),
          ((0.62, 0.68, 0.74), (0.82, 0.84, 0.86)), ((0.36, 0.48, 0.74), (0.95, 0.84, 0.72)))


@dataclasses.dataclass(frozen=True, eq=False)
class _Surroundings:
    """Vertex blocks with their faces, and the uniforms that go with them."""

    vertices: list[np.ndarray]
    faces: list[np.ndarray]
    uniforms: dict
    sky: tuple[np.ndarray, np.ndarray]
    light: np.ndarray


def _unit(azimuth: float, elevation: float) -> Float[np.ndarray, " 3"]:
    return np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])


def _quad(corners: Float[np.ndarray, "4 3"], colour: Colour, material: str, gloss: float = 0.0
          ) -> tuple[Float[np.ndarray, "4 12"], Int[np.ndarray, "2 3"]]:
    """One flat rectangle, corners in order."""
    normal = np.cross(corners[1] - corners[0], corners[3] - corners[0])
    normal = normal / np.linalg.norm(normal)
    return (interleave(corners, np.broadcast_to(normal, (4, 3)), np.broadcast_to(np.array(colour), (4, 3)), gloss,
                       material, 0), np.array([[0, 1, 2], [0, 2, 3]]))


def _wall_things(rng: np.random.Generator, wide: float, high: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures and windows for a wall of the given size, in the wall's frame (x along, y out, z up)."""
    blocks = []
    x = 0.4
    while x < wide - 1.6:
        x += rng.uniform(0.3, 2.5)
        w, h, z = rng.uniform(0.5, 1.2), rng.uniform(0.5, 1.0), rng.uniform(1.25, 1.5)
        if x + w > wide - 0.3 or z + h > high - 0.2:
            break
        window = rng.random() < 0.4
        inner = np.array((0.72, 0.84, 0.93)) if window else rng.uniform(0.35, 0.85, 3)
        frame = (0.93, 0.93, 0.92) if window else np.full(3, rng.uniform(0.1, 0.6))
        parts = [box((x, 0, z), (x + w, 0.03, z + h), frame),
                 box((x + 0.06, 0.0, z + 0.06), (x + w - 0.06, 0.034, z + h - 0.06), inner, -0.5 if window else 0.0)]
        if window:
            parts.append(box((x + w / 2 - 0.02, 0, z), (x + w / 2 + 0.02, 0.04, z + h), frame))
        thing = join(parts)
        blocks.append((interleave(thing.vertices, thing.normals, thing.colours, thing.gloss, "plain", 0),
                       thing.faces))
        x += w
    return blocks


def _room(rng: np.random.Generator, view: View, points: Float[np.ndarray, "P 3"]) -> _Surroundings:
    turn = np.radians(rng.uniform(-28, 28))
    axes = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    flat = np.concatenate([points[:, :2], view.position[None, :2] + [[0.4, -0.5], [-0.4, -0.5]]]) @ axes.T
    low = flat.min(0) - rng.uniform(0.15, 1.3, 2)
    high = flat.max(0) + rng.uniform(0.15, 1.3, 2)
    top = max(rng.uniform(2.4, 3.1), points[:, 2].max() + 0.15, view.position[2] + 0.3)
    material, colours = _FLOORS[rng.integers(len(_FLOORS))]
    wall = np.array(_WALLS[rng.integers(len(_WALLS))]) * rng.uniform(0.9, 1.03)
    stripes = float(rng.random() < 0.25)

    def world(u: float, v: float, z: float) -> np.ndarray:
        return np.array([*(np.array([u, v]) @ axes), z])

    (u0, v0), (u1, v1) = low, high
    blocks = [_quad(np.array([world(u0, v0, 0), world(u1, v0, 0), world(u1, v1, 0), world(u0, v1, 0)]),
                    colours[0], material),
              _quad(np.array([world(u0, v0, top), world(u0, v1, top), world(u1, v1, top), world(u1, v0, top)]),
                    (0.93, 0.93, 0.92), "plain")]
    # Start of each wall as seen from inside, left to right.
    for (a, b), (c, d) in (((u0, v1), (u1, v1)), ((u0, v0), (u0, v1)), ((u1, v1), (u1, v0)), ((u1, v0), (u0, v0))):
        blocks.append(_quad(np.array([world(a, b, 0), world(c, d, 0), world(c, d, top), world(a, b, top)]), wall,
                            "wall", stripes))
    for (a, b), (c, d) in (((u0, v1), (u1, v1)), ((u0, v0), (u0, v1)), ((u1, v1), (u1, v0))):
        start, along = world(a, b, 0), world(c, d, 0) - world(a, b, 0)
        wide = float(np.linalg.norm(along))
        along = along / wide
        inward = np.array([along[1], -along[0], 0])
        frame = np.stack([along, inward, [0, 0, 1]]).astype(np.float32)
        for vertices, faces in _wall_things(rng, wide, top):
            vertices[:, :3] = vertices[:, :3] @ frame + start
            vertices[:, 3:6] = vertices[:, 3:6] @ frame
            blocks.append((vertices, faces))
    tint = np.array([1.0, rng.uniform(0.93, 1.0), rng.uniform(0.84, 1.0)])
    strength = rng.uniform(0.85, 1.1)
    uniforms = {
        "light_colour": tint * rng.uniform(0.45, 0.7) * strength,
        "sky_light": np.array([0.52, 0.52, 0.54]) * strength, "ground_light": tint * 0.36 * strength,
        "ground_axes": np.array([np.cos(turn), np.sin(turn), *rng.uniform(-1, 1, 2)]),
        "ground_colours": np.array(colours) * rng.uniform(0.88, 1.05),
        "ground_scale": np.array([rng.uniform(0.3, 0.7), 0, 0]),
        "fog": np.array([0.8, 0.8, 0.8]), "fog_density": 0.0}
    sky = np.array([0.9, 0.9, 0.9])
    light = _unit(np.radians(rng.uniform(180, 360)), np.radians(rng.uniform(48, 72)))
    return _Surroundings([b[0] for b in blocks], [b[1] for b in blocks], uniforms, (sky, sky), light)


def _street(rng: np.random.Generator, view: View, points: Float[np.ndarray, "P 3"]) -> _Surroundings:
    turn = np.radians(rng.uniform(0, 180))
    cos, sin = np.cos(turn), np.sin(turn)
    half_road, pavement = rng.uniform(3.0, 5.0), rng.uniform(2.0, 4.0)
    middle = points[:, :2].mean(0) + rng.uniform(-1, 1) * (half_road + pavement) * np.array([-sin, cos])
    far = 150.0
    blocks = [_quad(np.array([[-far, -far, 0], [far, -far, 0], [far, far, 0], [-far, far, 0]]), (0.4, 0.4, 0.4),
                    "street")]
    reach = np.linalg.norm(points[:, :2] - view.position[:2], axis=1).max()
    for angle in np.radians(90 + np.linspace(-52, 52, 9) + rng.uniform(-6, 6, 9)):
        away = reach + rng.uniform(9, 32)
        wide, deep, high = rng.uniform(8, 18), rng.uniform(7, 12), rng.uniform(4.5, 19)
        place = away * np.array([np.cos(angle), np.sin(angle)])
        side = abs((place - middle) @ np.array([-sin, cos]))
        if side < half_road + pavement + np.hypot(wide, deep) / 2 or rng.random() < 0.2:
            continue
        colour = np.array(_FACADES[rng.integers(len(_FACADES))]) * rng.uniform(0.8, 1.1)
        house = rotate(box((-wide / 2, -deep / 2, 0), (wide / 2, deep / 2, high), colour), rotation_z(turn),
                       (*place, 0))
        blocks.append((interleave(house.vertices, house.normals, house.colours, 0.0, "building", 0), house.faces))
    zenith, horizon = (np.array(c) for c in _SKIES[rng.integers(len(_SKIES))])
    strength = rng.uniform(0.85, 1.1)
    tint = np.array([1.0, rng.uniform(0.92, 1.0), rng.uniform(0.80, 0.98)])
    gray = rng.uniform(0.28, 0.42)
    uniforms = {
        "light_colour": tint * rng.uniform(0.6, 0.9) * strength,
        "sky_light": np.array([0.40, 0.43, 0.48]) * strength, "ground_light": np.array([0.27, 0.27, 0.26]) * strength,
        "ground_axes": np.array([cos, sin, *middle]),
        "ground_colours": np.array([[gray, gray, gray * 1.03], np.array([0.64, 0.62, 0.58]) * rng.uniform(0.85, 1.1),
                                    np.array([0.36, 0.48, 0.24]) * rng.uniform(0.8, 1.15)]),
        "ground_scale": np.array([rng.uniform(0.6, 1.0), half_road, pavement]),
        "fog": horizon, "fog_density": rng.uniform(0.0005, 0.004)}
    light = _unit(np.radians(rng.uniform(150, 390)), np.radians(rng.uniform(32, 68)))
    return _Surroundings([b[0] for b in blocks], [b[1] for b in blocks], uniforms, (zenith, horizon), light)


def compose(rng: np.random.Generator, view: View, placed: Sequence[Placed], setting: str) -> Drawing:
    """The drawing of objects, pedestals and surroundings, with the light."""
    blocks, counts = [], []
    for index, thing in enumerate(placed):
        turned = rotate(thing.asset.mesh, rotation_z(thing.yaw), tuple(thing.position))
        blocks.append((interleave(turned.vertices, turned.normals, turned.colours, turned.gloss, "plain",
                                  index + 1), turned.faces))
    objects = len(blocks)
    for thing in placed:
        if thing.pedestal:
            half = thing.half.max() + 0.06
            tone = np.array([(0.62, 0.60, 0.56), (0.45, 0.45, 0.47), (0.52, 0.40, 0.28)])[rng.integers(3)]
            plinth = rotate(join([box((-half, -half, 0), (half, half, thing.pedestal - 0.04), tone),
                                  box((-half - 0.03, -half - 0.03, thing.pedestal - 0.04),
                                      (half + 0.03, half + 0.03, thing.pedestal - 0.001), tone * 1.1)]),
                            rotation_z(thing.yaw), (*thing.position[:2], 0))
            blocks.append((interleave(plinth.vertices, plinth.normals, plinth.colours, 0.0, "plain", 0),
                           plinth.faces))
    casters = len(blocks)
    points = np.concatenate([thing.corners() for thing in placed])
    around = (_room if setting == "indoor" else _street)(rng, view, points)
    blocks += list(zip(around.vertices, around.faces, strict=True))
    counts = [len(faces) for _, faces in blocks]
    offsets = np.cumsum([0] + [len(vertices) for vertices, _ in blocks[:-1]])
    low, high = points.min(0), points.max(0)
    pose, size = np.zeros((8, 4)), np.zeros((8, 2))
    grounded = [thing for thing in placed if thing.support is None]
    for k, thing in enumerate(grounded):
        pose[k] = *thing.position[:2], np.cos(thing.yaw), np.sin(thing.yaw)
        size[k] = thing.half
    uniforms = {**around.uniforms, "contact_count": len(grounded), "contact_pose": pose, "contact_size": size}
    return Drawing(np.concatenate([vertices for vertices, _ in blocks]),
                   np.concatenate([faces + offset for (_, faces), offset in zip(blocks, offsets, strict=True)]),
                   sum(counts[:objects]), sum(counts[:casters]),
                   all(not thing.asset.credit for thing in placed), around.light, (low + high) / 2,
                   float(np.linalg.norm(high - low) / 2) + 0.6, uniforms, around.sky)
