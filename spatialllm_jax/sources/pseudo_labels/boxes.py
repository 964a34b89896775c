"""Oriented boxes around points of which only the side towards the camera is seen.

A box is fitted to the seen points, in the frame of the object's orientation or, without one, of the smallest rectangle
around them in plan. What is behind cannot be seen, but it is bounded: every point of the object lies on a ray through
its mask, or through something that hides it, no nearer than what is seen there. Cutting those rays at a box cuts the
box in turn, until nothing changes (`possible_extents`). Each face of the true box lies between the seen extent and the
possible one, which is an interval for the centre: the part of `Uncertainty` that no better model removes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from spatialllm_jax.scene.geometry import rotation_from_viewpoint, rotation_y
from spatialllm_jax.scene.types import Box3D
from spatialllm_jax.sources.pseudo_labels.interfaces import Orientation

_ROUNDS = 20
_CHANGE = 1e-3      # share of the extent below which cutting stops


@dataclasses.dataclass(frozen=True, eq=False)
class Rays:
    """Where an object may be.

    Attributes:
        directions: camera frame, z = 1.
        nearest: z-depth from which on the object may lie on the ray.
        behind: whether the ray goes through another thing that hides the object, not through its own mask.
    """

    directions: Float[np.ndarray, "M 3"]
    nearest: Float[np.ndarray, " M"]
    behind: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """Attributes:
    box: around the seen points.
    low, high: metres that its faces may lie further out, against and along its axes.
    """

    box: Box3D
    low: Float[np.ndarray, "3"]
    high: Float[np.ndarray, "3"]


def seen_extents(points: Float[np.ndarray, "P 3"], rotation: Float[np.ndarray, "3 3"], trim: float
                 ) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Lowest and highest coordinate of the points along a frame's axes, `trim` of them left out at each end."""
    low, high = np.quantile(points @ rotation, [trim, 1 - trim], axis=0)
    return low, high


def possible_extents(rays: Rays, rotation: Float[np.ndarray, "3 3"], outer: tuple[np.ndarray, np.ndarray]
                     ) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """The smallest extents inside `outer` that cutting the rays at the box, and the box at the rays, arrives at.

    Args:
        outer: lowest and highest coordinate along the frame's axes to begin with.
    """
    slopes = rays.directions @ rotation
    low, high = (np.asarray(bound, float).copy() for bound in outer)
    slopes = np.where(np.abs(slopes) < 1e-9, 1e-9, slopes)
    for _ in range(_ROUNDS):
        ends = np.stack([low / slopes, high / slopes])
        enter = np.maximum(ends.min(axis=0).max(axis=1), rays.nearest)
        leave = ends.max(axis=0).min(axis=1)
        hit = enter <= leave
        if not hit.any():
            break
        ends = np.concatenate([slopes[hit] * enter[hit, None], slopes[hit] * leave[hit, None]])
        tighter = np.maximum(low, ends.min(axis=0)), np.minimum(high, ends.max(axis=0))
        moved = max(np.abs(tighter[0] - low).max(), np.abs(tighter[1] - high).max())
        (low, high), size = tighter, float((high - low).max())
        if moved < _CHANGE * size:
            break
    return low, high


def fit_box(points: Float[np.ndarray, "P 3"], rotation: Float[np.ndarray, "3 3"], rays: Rays, *, trim: float,
            hidden: float, standing: bool, footprint: float, largest: Float[np.ndarray, "3"] | None = None) -> Fit:
    """The box around seen points, and how far each of its faces may lie further out.

    Args:
        rotation: of the box; columns front, down, left.
        hidden: an unseen part is at most so many times as long as the longest seen extent.
        standing: the box's y axis is gravity and the object stands on its lowest points: where nothing hides them,
            it does not reach below what is seen.
        footprint: metres by which the edges of the mask may be off at the object: no face is known better.
        largest: size along the box's axes that is not exceeded, where known.
    """
    low, high = seen_extents(points, rotation, trim)
    low = np.minimum(low, high - 1e-3)
    reach = hidden * float((high - low).max())
    outer_low, outer_high = low - reach, high + reach
    if largest is not None:
        outer_low = np.minimum(np.maximum(outer_low, high - largest), low)
        outer_high = np.maximum(np.minimum(outer_high, low + largest), high)
    if standing and not rays.behind.any():
        lowest = (rays.directions * rays.nearest[:, None]) @ rotation[:, 1]
        outer_high[1] = min(outer_high[1], max(high[1], float(lowest.max())) + footprint)
    found_low, found_high = possible_extents(rays, rotation, (outer_low, outer_high))
    box = Box3D(rotation @ ((low + high) / 2), high - low, rotation)
    return Fit(box, np.maximum(low - found_low, footprint), np.maximum(found_high - high, footprint))


def rotation_of(orientation: Orientation, center: Float[np.ndarray, "3"], down: Float[np.ndarray, "3"] | None
                ) -> Float[np.ndarray, "3 3"]:
    """A box's rotation from an estimated viewpoint at `center`; turned upright where `down` is given."""
    rotation = rotation_from_viewpoint(orientation.azimuth, orientation.elevation, orientation.theta, center)
    front = rotation[:, 0]
    if down is None or abs(front @ down) > 0.9:
        return rotation
    return rotation_y(front, -down)


def rectangle_rotation(points: Float[np.ndarray, "P 3"], down: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """The frame of the smallest upright box: the rectangle of least area around the points in plan.

    One of its sides lies along an edge of the convex hull (Freeman and Shapira 1975). The x axis is the longer side;
    it is no front.
    """
    up = -down
    helper = np.array([1.0, 0.0, 0.0]) if abs(up[0]) < 0.9 else np.array([0.0, 0.0, 1.0])
    east = helper - (helper @ up) * up
    east /= np.linalg.norm(east)
    plan = points @ np.stack([east, np.cross(up, east)], axis=1)
    edges = _hull_edges(plan)
    angles = np.unique(np.round(np.arctan2(edges[:, 1], edges[:, 0]) % (np.pi / 2), 6))
    ahead = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    sides = np.stack([np.ptp(plan @ ahead.T, axis=0), np.ptp(plan @ (ahead[:, ::-1] * [-1, 1]).T, axis=0)])
    best = int((sides[0] * sides[1]).argmin())
    heading = ahead[best] if sides[0, best] >= sides[1, best] else ahead[best, ::-1] * [-1, 1]
    return rotation_y(heading[0] * east + heading[1] * np.cross(up, east), up)


def _hull_edges(plan: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, "E 2"]:
    """Edges of the convex hull in plan; of points on one line, its direction."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        corners = plan[ConvexHull(plan).vertices]
        return np.roll(corners, -1, axis=0) - corners
    except QhullError:
        return np.linalg.svd(plan - plan.mean(axis=0), full_matrices=False)[2][:1]
