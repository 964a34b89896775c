"""Where things stand: the camera, and objects on the ground, on one another and on pedestals.

World frame: +x right, +y ahead, +z up, metres; the camera is above the origin.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from spatialllm_jax.sources.rendered.config import RenderConfig
from spatialllm_jax.sources.rendered.primitives import Mesh
from spatialllm_jax.sources.rendered.renderer import View

CANDIDATES = 64
MARGIN = {"indoor": 0.08, "outdoor": 0.25}      # metres between footprints
FARTHEST = {"indoor": 9.0, "outdoor": 45.0}     # metres ahead
MAX_OVERLAP = 0.55                              # of the smaller of two projected boxes
PLACEMENT_JITTER = np.radians(14.0)             # of "parallel" and "faces"
TALLEST_ON_TOP = 0.75                           # metres: what stands on furniture


@dataclasses.dataclass(frozen=True, eq=False)
class Asset:
    """An object before it is placed: category, look, size (length, width, height) in metres, mesh.

    `credit` names the mesh it came from, or is "" for procedural objects.
    """

    category: str
    colour: str
    has_front: bool
    carries: bool
    small: bool
    size: tuple[float, float, float]
    mesh: Mesh
    credit: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Placed:
    """An asset in the world.

    Attributes:
        position: centre of the base, metres.
        yaw: direction of the front about +z, radians from +x.
        support: index of the object it stands on, None for the ground or a pedestal.
        pedestal: height in metres of the pedestal below, 0 for none.
    """

    asset: Asset
    position: Float[np.ndarray, " 3"]
    yaw: float
    support: int | None = None
    pedestal: float = 0.0

    @property
    def half(self) -> Float[np.ndarray, " 2"]:
        """Half length and half width."""
        return np.array(self.asset.size[:2]) / 2

    def corners(self) -> Float[np.ndarray, "8 3"]:
        """Corners of the box in the world."""
        return _corners(self.position[None], np.array([self.yaw]), self.asset.size)[0]


def sample_view(config: RenderConfig, rng: np.random.Generator, setting: str) -> View:
    """A camera above the origin that looks ahead and somewhat down."""
    size = config.image_size
    focal = size / 2 / np.tan(np.radians(rng.uniform(*config.field_of_view)) / 2)
    height = rng.uniform(0.9, 2.1) if setting == "indoor" else rng.uniform(1.0, 3.2)
    pitch = np.radians(rng.uniform(3, 10) + rng.uniform(2, 6) * height)
    roll = np.radians(rng.uniform(-config.max_roll, config.max_roll))
    level = np.array([1.0, 0, 0]), np.array([0, -np.sin(pitch), -np.cos(pitch)])
    right = np.cos(roll) * level[0] + np.sin(roll) * level[1]
    down = np.cos(roll) * level[1] - np.sin(roll) * level[0]
    return View(np.array([0.0, 0.0, height]), np.stack([right, down, np.cross(right, down)]),
                np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]))


def _corners(positions: Float[np.ndarray, "K 3"], yaws: Float[np.ndarray, " K"],
             size: tuple[float, float, float]) -> Float[np.ndarray, "K 8 3"]:
    length, width, height = size
    signs = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (0, 1)])
    local = signs * np.array([length, width, height])
    c, s = np.cos(yaws)[:, None], np.sin(yaws)[:, None]
    turned = np.stack([c * local[:, 0] - s * local[:, 1], s * local[:, 0] + c * local[:, 1],
                       np.broadcast_to(local[:, 2], (len(yaws), 8))], -1)
    return positions[:, None] + turned


def apart(positions: Float[np.ndarray, "K 2"], yaw: Float[np.ndarray, " K"], half: Float[np.ndarray, " 2"],
          other: Placed, margin: float) -> Bool[np.ndarray, " K"]:
    """Whether rectangles are at least `margin` apart along one of the four separating axes."""
    between = positions - other.position[:2]
    result = np.zeros(len(positions), bool)
    axes_a = np.stack([np.stack([np.cos(yaw), np.sin(yaw)], -1), np.stack([-np.sin(yaw), np.cos(yaw)], -1)], 1)
    c, s = np.cos(other.yaw), np.sin(other.yaw)
    axes_b = np.array([[c, s], [-s, c]])
    overlap = np.abs(np.einsum("kad,bd->kab", axes_a, axes_b))
    reach_a = half + overlap @ other.half                     # along the candidates' own axes
    reach_b = other.half + np.einsum("kab,a->kb", overlap, half)
    result |= (np.abs(np.einsum("kad,kd->ka", axes_a, between)) > reach_a + margin).any(1)
    result |= (np.abs(between @ axes_b.T) > reach_b + margin).any(1)
    return result


def projected_boxes(view: View, corners: Float[np.ndarray, "K 8 3"]) -> tuple[Float[np.ndarray, "K 4"],
                                                                              Bool[np.ndarray, " K"]]:
    """x1, y1, x2, y2 around projected corners, and whether all of them lie in front of the camera."""
    pixels, depth = view.project(corners)
    return np.concatenate([pixels.min(1), pixels.max(1)], 1), np.all(depth > 0.4, axis=1)


def _clip(boxes: Float[np.ndarray, "... 4"], size: int) -> Float[np.ndarray, "... 4"]:
    return np.clip(boxes, 0, size)


def _area(boxes: Float[np.ndarray, "... 4"]) -> Float[np.ndarray, " ..."]:
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def outside_share(boxes: Float[np.ndarray, "... 4"], size: int) -> Float[np.ndarray, " ..."]:
    """Share of each 2D box that lies outside a square image."""
    return 1 - _area(_clip(boxes, size)) / np.maximum(_area(boxes), 1e-9)


def _acceptable(config: RenderConfig, view: View, asset: Asset, positions: Float[np.ndarray, "K 3"],
                yaws: Float[np.ndarray, " K"], placed: Sequence[Placed], boxes: Sequence[np.ndarray],
                setting: str, support: int | None) -> tuple[Bool[np.ndarray, " K"], Float[np.ndarray, "K 4"]]:
    """Which candidates are in view, large enough, clear of the others and not hiding them."""
    size = config.image_size
    found, in_front = projected_boxes(view, _corners(positions, yaws, asset.size))
    extent = found[:, 2:] - found[:, :2]
    good = in_front & (positions[:, 1] < FARTHEST[setting])
    good &= outside_share(found, size) <= config.max_truncation * 0.8
    good &= (extent[:, 1] >= config.min_height * size)
    good &= (extent.max(1) >= config.min_extent * size) & (extent.max(1) <= config.max_extent * size)
    clipped = _clip(found, size)
    half = np.array(asset.size[:2]) / 2
    for index, (other, box) in enumerate(zip(placed, boxes, strict=True)):
        if index != support:
            good &= apart(positions[:, :2], yaws, half, other, MARGIN[setting])
            shared = np.concatenate([np.maximum(clipped[:, :2], box[:2]), np.minimum(clipped[:, 2:], box[2:])], 1)
            good &= _area(shared) <= MAX_OVERLAP * np.minimum(_area(clipped), _area(box))
    return good, clipped


def _in_view(config: RenderConfig, view: View, asset: Asset, rng: np.random.Generator,
             base: float) -> Float[np.ndarray, "K 3"]:
    """Candidate positions at height `base` whose apparent size and column in the image are spread evenly."""
    length, width, height = asset.size
    focal, size = view.intrinsics[0, 0], config.image_size
    low, high = np.log(config.min_extent * 1.15), np.log(config.max_extent * 0.92)
    extent = np.exp(rng.uniform(low, high, CANDIDATES)) * size
    ahead = focal * max(height, 0.85 * np.hypot(length, width)) / extent
    column = rng.uniform(0.06, 0.94, CANDIDATES) * size
    side = (column - size / 2) / focal * ahead
    return np.stack([side, ahead, np.full(CANDIDATES, base)], 1)


def _from_others(rng: np.random.Generator, asset: Asset, yaw: float, placed: Sequence[Placed]
                 ) -> Float[np.ndarray, "K 3"]:
    """Candidate positions from which the asset faces a placed object, or at which a placed one faces it."""
    fronted = [other for other in placed if other.asset.has_front]
    jitter = rng.uniform(-1, 1, CANDIDATES) * PLACEMENT_JITTER
    if fronted and (not asset.has_front or rng.random() < 0.5):
        other = fronted[rng.integers(len(fronted))]
        direction, sign = other.yaw + jitter, 1.0
    else:
        other = placed[int(rng.integers(len(placed)))]
        direction, sign = yaw + jitter, -1.0
    near = other.half.max() + max(asset.size[:2]) / 2
    away = near + rng.uniform(0.05, 1.0, CANDIDATES) ** 1.5 * (2.0 + 1.5 * near)
    offset = sign * away[:, None] * np.stack([np.cos(direction), np.sin(direction)], -1)
    return np.concatenate([other.position[:2] + offset, np.zeros((CANDIDATES, 1))], 1)


def _on_top(rng: np.random.Generator, asset: Asset, yaws: Float[np.ndarray, " K"], support: Placed
            ) -> tuple[Float[np.ndarray, "K 3"], Bool[np.ndarray, " K"]]:
    """Candidate positions on a support's top, and whether the asset fits there (12 cm may hang over)."""
    relative = yaws - support.yaw
    c, s = np.abs(np.cos(relative)), np.abs(np.sin(relative))
    length, width = asset.size[:2]
    reach = np.stack([c * length + s * width, s * length + c * width], -1) / 2
    room = np.maximum(support.half - reach, 0)
    local = rng.uniform(-1, 1, (CANDIDATES, 2)) * room
    cos, sin = np.cos(support.yaw), np.sin(support.yaw)
    offset = local @ np.array([[cos, sin], [-sin, cos]])
    top = support.position[2] + support.asset.size[2]
    fits = np.all(reach <= support.half + 0.12, axis=1)
    return np.concatenate([support.position[:2] + offset, np.full((CANDIDATES, 1), top)], 1), fits


def _choose_yaw(config: RenderConfig, rng: np.random.Generator, asset: Asset, placed: Sequence[Placed],
                aligned: bool) -> float:
    """Uniform; or parallel or opposed to a placed fronted object, whose own yaw is uniform."""
    fronted = [other for other in placed if other.asset.has_front]
    if aligned and asset.has_front and fronted:
        other = fronted[rng.integers(len(fronted))]
        turn = np.pi * rng.integers(2) + rng.uniform(-1, 1) * PLACEMENT_JITTER
        return float((other.yaw + turn) % (2 * np.pi))
    return float(rng.uniform(0, 2 * np.pi))


def place(config: RenderConfig, view: View, setting: str, count: int, rng: np.random.Generator,
          draw: Callable[[Sequence[Placed], bool], Asset | None]) -> list[Placed] | None:
    """Places `count` assets one after another; None when they do not fit.

    The yaw of each object is drawn before its place and kept whatever place is found, so that yaws stay
    uniform; only then the place is searched: anywhere in view, or where one object faces another.

    Args:
        draw: draws the next asset, given what is placed and whether it is to stand on furniture.
    """
    placed: list[Placed] = []
    boxes: list[np.ndarray] = []
    for _ in range(3 * count):
        if len(placed) == count:
            break
        taken = {other.support for other in placed}
        supports = [i for i, other in enumerate(placed) if other.asset.carries and i not in taken]
        stacking = bool(supports) and rng.random() < config.stacked
        asset = draw(placed, stacking)
        if asset is None:
            continue
        mode = rng.random()
        yaw = _choose_yaw(config, rng, asset, placed, mode < config.aligned)
        yaws = np.full(CANDIDATES, yaw)
        support, pedestal, allowed = None, 0.0, np.ones(CANDIDATES, bool)
        if stacking and asset.small:
            support = supports[rng.integers(len(supports))]
            positions, allowed = _on_top(rng, asset, yaws, placed[support])
        elif placed and config.aligned <= mode < config.aligned + config.facing:
            positions = _from_others(rng, asset, yaw, placed)
        else:
            raisable = config.raise_all or (asset.small and asset.size[2] <= TALLEST_ON_TOP)
            if raisable and rng.random() < config.raised:
                pedestal = float(rng.uniform(0.3, 1.1))
            positions = _in_view(config, view, asset, rng, pedestal)
        good, clipped = _acceptable(config, view, asset, positions, yaws, placed, boxes, setting, support)
        good &= allowed
        if not good.any():
            continue
        first = int(np.argmax(good))
        placed.append(Placed(asset, positions[first], yaw, support, pedestal))
        boxes.append(clipped[first])
    return placed if len(placed) == count else None
