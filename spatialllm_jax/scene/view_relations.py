"""Left or right, above or below, in front or behind, for the viewer: an extra beside SpatialVQA's seven types.

Positions are taken in the camera's levelled frame: up = against gravity; right = the camera's +x made
horizontal; forward = the horizontal direction orthogonal to both, away from the camera. Where the vertical
is unknown the camera's own axes stand in for it, and nothing is asked about above and below. The paper asks
no such questions; users of other data expect them, so they are ours, margins included.

"In front of" means nearer along the forward axis, whatever way the objects themselves face.

A case is asked only if nothing about it looks odd to a person:
- the centres differ by `gap` and by `ratio` of the longer box along the axis;
- the boxes do not enclose one another along the axis: both ends are ordered as the centres are;
- the picture agrees: the left one is also seen further left (bearing), the one above is seen higher
  (elevation), the one in front is also nearer to the camera (distance). Perspective can turn each around.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from spatialllm_jax.scene import geometry
from spatialllm_jax.scene.relations import SceneArrays, Verdict
from spatialllm_jax.scene.types import Scene
from spatialllm_jax.scene.uncertainty import scene_errors, sway


@dataclasses.dataclass(frozen=True)
class ViewMargins:
    """How clear a case must be to be asked.

    Attributes:
        gap: least difference of the centres along the axis, metres; metric scenes only.
        ratio: the same as a share of the longer of the two boxes' extents along the axis.
        seen_degrees: left/right, above/below: least difference of the directions in which they are seen.
        level_degrees: nothing is asked when the camera's +x axis is tilted out of the horizontal by more, and
            nothing about front and behind when it looks up or down by more than 90 degrees less this.
    """

    gap: float = 0.3
    ratio: float = 0.25
    seen_degrees: float = 2.0
    level_degrees: float = 30.0


@dataclasses.dataclass(frozen=True, eq=False)
class ViewArrays:
    """What the three predicates read, for N objects; plain lists, quick to index.

    Attributes:
        metric: whether lengths are metres.
        shared_scale: whether positions of different objects can be compared at all.
        vertical: whether the vertical is known.
        roll, pitch: tilt of the camera's +x and +z axes out of the horizontal, degrees, not negative.
        right, up, forward: of the centres along the axes, relative to the camera.
        extents: [N][3] extents of the boxes along right, up, forward.
        bearing: directions of the centres to the right of straight ahead, degrees.
        elevation: directions of the centres above the horizontal, degrees.
        distance: of the centres to the camera.
        errors: [N][3] metres by which right, up and forward may be off; all 0 for annotated boxes.
        seen_error: degrees by which bearing and elevation may be off.
        distance_error: metres by which the distance may be off.
    """

    metric: bool
    shared_scale: bool
    vertical: bool
    roll: float
    pitch: float
    right: list[float]
    up: list[float]
    forward: list[float]
    extents: list[list[float]]
    bearing: list[float]
    elevation: list[float]
    distance: list[float]
    errors: list[list[float]]
    seen_error: list[float]
    distance_error: list[float]


def view_arrays(scene: Scene, arrays: SceneArrays | None = None) -> ViewArrays:
    """Computes `ViewArrays` for a scene.

    Args:
        arrays: `scene_arrays(scene)` when the caller has it already, for its errors.
    """
    vertical = scene.camera.gravity is not None or scene.upright
    up = geometry.up_vector(scene) if vertical else np.array([0.0, -1.0, 0.0])
    roll = float(np.degrees(np.arcsin(min(abs(up[0]), 1.0))))
    pitch = float(np.degrees(np.arcsin(min(abs(up[2]), 1.0))))
    right = np.array([1.0, 0.0, 0.0]) - up[0] * up
    length = np.linalg.norm(right)
    right = right / length if length > 1e-6 else np.array([0.0, 0.0, 1.0])
    axes = np.stack([right, up, np.cross(up, right)])
    centers = np.array([o.box.center for o in scene.objects], float).reshape(-1, 3)
    rotations = np.array([o.box.rotation for o in scene.objects], float).reshape(-1, 3, 3)
    sizes = np.array([o.box.size for o in scene.objects], float).reshape(-1, 3)
    places = centers @ axes.T
    extents = (np.abs(np.einsum("ax,nxj->naj", axes, rotations)) * sizes[:, None]).sum(axis=-1)
    level = np.hypot(places[:, 0], places[:, 2])
    distance = np.linalg.norm(centers, axis=1)
    moves, seen_error, distance_error = np.zeros((len(centers), 3)), np.zeros(len(centers)), np.zeros(len(centers))
    if (known := scene_errors(scene) if arrays is None else arrays.errors) is not None:
        tilt = scene.camera.gravity_error
        moves = np.stack([known.reach.across(axis) for axis in axes], axis=1) + sway(distance, tilt)[:, None]
        extents = extents + np.stack([known.reach.extents(axis) for axis in axes], axis=1)
        seen_error = np.array(known.direction)[:, -1] + tilt
        distance_error = np.maximum(np.array(known.farthest)[:, -1] - distance,
                                    distance - np.array(known.nearest)[:, -1])
    return ViewArrays(
        metric=scene.metric, shared_scale=scene.shared_scale, vertical=vertical, roll=roll, pitch=pitch,
        right=places[:, 0].tolist(), up=places[:, 1].tolist(), forward=places[:, 2].tolist(),
        extents=extents.tolist(),
        bearing=np.degrees(np.arctan2(places[:, 0], places[:, 2])).tolist(),
        elevation=np.degrees(np.arctan2(places[:, 1], level)).tolist(),
        distance=distance.tolist(), errors=moves.tolist(), seen_error=seen_error.tolist(),
        distance_error=distance_error.tolist(),
    )  # fmt: skip


def left_right(arrays: ViewArrays, a: int, b: int, margins: ViewMargins) -> Verdict | None:
    """Whether the first object is to the "left" or "right" of the second for the viewer."""
    first, second = arrays.right[a], arrays.right[b]
    if not _askable(arrays, margins) or not _clear(arrays, a, b, 0, first - second, margins):
        return None
    seen = arrays.bearing[a] - arrays.bearing[b]
    if abs(seen) < margins.seen_degrees + _seen_error(arrays, a, b) or (seen < 0) != (first < second):
        return None
    return Verdict("left" if first < second else "right", {"right_first": first, "right_second": second},
                   abs(first - second))  # fmt: skip


def above_below(arrays: ViewArrays, a: int, b: int, margins: ViewMargins) -> Verdict | None:
    """Whether the first object is "above" or "below" the second."""
    first, second = arrays.up[a], arrays.up[b]
    if not arrays.vertical or not _askable(arrays, margins) or not _clear(arrays, a, b, 1, first - second, margins):
        return None
    seen = arrays.elevation[a] - arrays.elevation[b]
    if abs(seen) < margins.seen_degrees + _seen_error(arrays, a, b) or (seen > 0) != (first > second):
        return None
    return Verdict("above" if first > second else "below", {"up_first": first, "up_second": second},
                   abs(first - second))  # fmt: skip


def front_behind(arrays: ViewArrays, a: int, b: int, margins: ViewMargins) -> Verdict | None:
    """Whether the first object is in "front" of the second for the viewer, nearer to them, or "behind" it."""
    first, second = arrays.forward[a], arrays.forward[b]
    if not _askable(arrays, margins) or arrays.pitch > 90.0 - margins.level_degrees:
        return None
    if not _clear(arrays, a, b, 2, first - second, margins):
        return None
    nearer = arrays.distance[b] - arrays.distance[a]
    if (nearer > 0) != (first < second) or abs(nearer) < arrays.distance_error[a] + arrays.distance_error[b]:
        return None
    return Verdict("front" if first < second else "behind", {"forward_first": first, "forward_second": second},
                   abs(first - second))  # fmt: skip


def _askable(arrays: ViewArrays, margins: ViewMargins) -> bool:
    """Whether the scene allows any such question."""
    return arrays.shared_scale and arrays.roll <= margins.level_degrees


def _seen_error(arrays: ViewArrays, a: int, b: int) -> float:
    return arrays.seen_error[a] + arrays.seen_error[b]


def _clear(arrays: ViewArrays, a: int, b: int, axis: int, difference: float, margins: ViewMargins) -> bool:
    """Whether the boxes are clearly apart along an axis: the gap, the share, and neither encloses the other."""
    first, second = arrays.extents[a][axis], arrays.extents[b][axis]
    gap = abs(difference) - arrays.errors[a][axis] - arrays.errors[b][axis]
    if arrays.metric and gap < margins.gap:
        return False
    return gap >= margins.ratio * max(first, second) and gap >= abs(first - second) / 2
