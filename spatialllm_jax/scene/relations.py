"""The seven predicates of SpatialVQA, each with margins (DESIGN §4; paper, Supplement B).

A predicate returns a `Verdict`, or None when the case is too close to call. All numbers it needs are
computed once per scene (`SceneArrays`), so that asking is cheap. Ratios are taken against the larger
of the two quantities. Gaps in metres are required of metric scenes only. Where objects share no scale
(`Scene.shared_scale`), nothing is said that compares the positions of two of them; where no vertical is
known (`geometry.vertical`), nothing about heights or about the sides of an object.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from spatialllm_jax.scene import geometry
from spatialllm_jax.scene.types import Scene

SIDES = ("front", "left", "back", "right")
Rows = list[list[float]]


@dataclasses.dataclass(frozen=True)
class Margins:
    """How clear a case must be to be asked. The paper is silent on them: they are ours.

    Attributes:
        camera_gap, camera_ratio: closer to camera: difference of the distances, metres and share.
        object_gap, object_ratio: closer to object: the same from the anchor.
        side_degrees: facing camera, on which side: at most this far from front, left, back or right.
        side_elevation: sides are asked below this elevation of the direction ...
        top_elevation: ... and top or bottom above this one.
        facing_degrees, facing_other: facing object: the winner at most, the other at least this far from
            the front.
        same_degrees, different_degrees: same direction: at most, very different: at least.
        higher_gap, higher_ratio: higher: difference of the centres' heights, in metres and as a share
            of the taller box.
    """

    camera_gap: float = 0.3
    camera_ratio: float = 0.15
    object_gap: float = 0.3
    object_ratio: float = 0.20
    side_degrees: float = 30.0
    side_elevation: float = 45.0
    top_elevation: float = 60.0
    facing_degrees: float = 30.0
    facing_other: float = 60.0
    same_degrees: float = 30.0
    different_degrees: float = 90.0
    higher_gap: float = 0.25
    higher_ratio: float = 0.25


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A predicate's answer.

    Attributes:
        answer: "first" or "second"; "same" or "different"; or a side.
        quantities: the numbers it came from, by name, in metres and degrees.
        margin: how far they are from the answer's boundary, in metres or degrees.
    """

    answer: str
    quantities: dict[str, float]
    margin: float


@dataclasses.dataclass(frozen=True, eq=False)
class SceneArrays:
    """Everything the predicates read, for N objects; plain nested lists, quick to index one by one.

    Attributes:
        metric: whether lengths are metres.
        shared_scale: whether positions of different objects may be compared.
        vertical: whether the scene says where "up" is; otherwise heights and horizontal frames are
            made up and nothing may be answered from them.
        has_front: semantic fronts that also have a direction in the horizontal plane.
        depth: z of the centres.
        distance: of the centres to the camera.
        height: of the centres against gravity, relative to the camera.
        extent: vertical extent of the boxes.
        between: [N][N] distances of the centres.
        fronts: [N][N] angles between the fronts.
        off_front: [N][N+1] angle between i's front and the direction to j; column N is the camera.
        bearing: [N][N+1] direction from i to j in i's horizontal frame: 0 front, 90 left, ±180 back.
        elevation: [N][N+1] elevation of the direction from i to j in the object's upright frame.
    """

    metric: bool
    shared_scale: bool
    vertical: bool
    has_front: list[bool]
    depth: list[float]
    distance: list[float]
    height: list[float]
    extent: list[float]
    between: Rows
    fronts: Rows
    off_front: Rows
    bearing: Rows
    elevation: Rows


def scene_arrays(scene: Scene) -> SceneArrays:
    """Computes `SceneArrays` for a scene; about 0.1 ms."""
    n = len(scene.objects)
    if n == 0:
        return SceneArrays(scene.metric, scene.shared_scale, geometry.vertical(scene)[1], *([] for _ in range(10)))
    centers: Float[np.ndarray, "n 3"] = np.array([o.box.center for o in scene.objects], float)
    rotations: Float[np.ndarray, "n 3 3"] = np.array([o.box.rotation for o in scene.objects], float)
    sizes = np.array([o.box.size for o in scene.objects], float)
    semantic: Bool[np.ndarray, n] = np.array([o.has_front for o in scene.objects])
    up, known = geometry.vertical(scene)
    fronts = rotations[:, :, 0]

    # Horizontal frames: the front without its vertical part, and the left that goes with it.
    level = fronts - np.outer(fronts @ up, up)
    tilt = np.linalg.norm(level, axis=1)
    level = level / np.maximum(tilt, 1e-9)[:, None]
    left = np.cross(up, level)

    targets = np.concatenate([centers, np.zeros((1, 3))])
    offset = targets[None] - centers[:, None]  # [N, N+1, 3]
    length = np.linalg.norm(offset, axis=-1)
    direction = offset / np.maximum(length, 1e-9)[..., None]
    ahead = np.einsum("ijk,ik->ij", direction, level)
    aside = np.einsum("ijk,ik->ij", direction, left)
    above = direction @ up
    return SceneArrays(
        metric=scene.metric,
        shared_scale=scene.shared_scale,
        vertical=known,
        has_front=(semantic & (tilt > 0.5) & known).tolist(),
        depth=centers[:, 2].tolist(),
        distance=length[:, n].tolist(),
        height=(centers @ up).tolist(),
        extent=(np.abs(np.einsum("nij,i->nj", rotations, up)) * sizes).sum(axis=1).tolist(),
        between=length[:, :n].tolist(),
        fronts=_angle(fronts @ fronts.T).tolist(),
        off_front=_angle(np.einsum("ijk,ik->ij", direction, fronts)).tolist(),
        bearing=np.degrees(np.arctan2(aside, ahead)).tolist(),
        elevation=np.degrees(np.arcsin(np.clip(above, -1, 1))).tolist(),
    )


def _angle(cosine: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def judge_closer(a: float, b: float, metric: bool, gap: float, ratio: float) -> str | None:
    """Which of two distances is clearly smaller: "first", "second" or None."""
    difference = abs(a - b)
    if difference < ratio * max(a, b) or (metric and difference < gap):
        return None
    return "first" if a < b else "second"


def judge_side(bearing: float, elevation: float, margins: Margins) -> tuple[str, float] | None:
    """(side, margin in degrees) of a direction in an object's horizontal frame, or None."""
    if abs(elevation) >= margins.top_elevation:
        return ("top" if elevation > 0 else "bottom"), abs(elevation) - 45.0
    if abs(elevation) > margins.side_elevation:
        return None
    quarter = round(bearing / 90.0)
    off = abs(bearing - 90.0 * quarter)
    if off > margins.side_degrees:
        return None
    return SIDES[quarter % 4], 45.0 - off


def closer_to_camera(arrays: SceneArrays, a: int, b: int, margins: Margins) -> Verdict | None:
    """Which of two objects' centres is closer to the camera."""
    if not arrays.shared_scale:
        return None
    first, second = arrays.distance[a], arrays.distance[b]
    answer = judge_closer(first, second, arrays.metric, margins.camera_gap, margins.camera_ratio)
    if answer is None:
        return None
    return Verdict(answer, {"distance_first": first, "distance_second": second}, abs(first - second))


def closer_to_object(arrays: SceneArrays, anchor: int, a: int, b: int, margins: Margins) -> Verdict | None:
    """Which of two objects' centres is closer to the anchor's centre."""
    if not arrays.shared_scale:
        return None
    first, second = arrays.between[anchor][a], arrays.between[anchor][b]
    answer = judge_closer(first, second, arrays.metric, margins.object_gap, margins.object_ratio)
    if answer is None:
        return None
    return Verdict(answer, {"distance_first": first, "distance_second": second}, abs(first - second))


def facing_camera(arrays: SceneArrays, a: int, margins: Margins) -> Verdict | None:
    """Which side of an object faces the camera: a side, "top" or "bottom"."""
    if not arrays.has_front[a]:
        return None
    bearing, elevation = arrays.bearing[a][-1], arrays.elevation[a][-1]
    judged = judge_side(bearing, elevation, margins)
    if judged is None:
        return None
    return Verdict(judged[0], {"bearing": bearing, "elevation": elevation}, judged[1])


def facing_object(arrays: SceneArrays, anchor: int, a: int, b: int, margins: Margins) -> Verdict | None:
    """Which of two objects the anchor's front points at."""
    if not (arrays.shared_scale and arrays.has_front[anchor]):
        return None
    first, second = arrays.off_front[anchor][a], arrays.off_front[anchor][b]
    if min(first, second) > margins.facing_degrees or max(first, second) < margins.facing_other:
        return None
    answer = "first" if first < second else "second"
    return Verdict(answer, {"angle_first": first, "angle_second": second}, abs(first - second))


def same_direction(arrays: SceneArrays, a: int, b: int, margins: Margins) -> Verdict | None:
    """Whether two objects face the same or very different directions."""
    if not (arrays.has_front[a] and arrays.has_front[b]):
        return None
    angle = arrays.fronts[a][b]
    if margins.same_degrees < angle < margins.different_degrees:
        return None
    middle = (margins.same_degrees + margins.different_degrees) / 2
    return Verdict("same" if angle < middle else "different", {"angle": angle}, abs(angle - middle))


def higher(arrays: SceneArrays, a: int, b: int, margins: Margins) -> Verdict | None:
    """Which of two objects' centres is higher."""
    if not (arrays.shared_scale and arrays.vertical):
        return None
    first, second = arrays.height[a], arrays.height[b]
    taller = max(arrays.extent[a], arrays.extent[b])
    gap = abs(first - second)
    if gap < margins.higher_ratio * taller or (arrays.metric and gap < margins.higher_gap):
        return None
    answer = "first" if first > second else "second"
    return Verdict(answer, {"height_first": first, "height_second": second, "taller": taller}, gap)


def on_which_side(arrays: SceneArrays, anchor: int, target: int, margins: Margins) -> Verdict | None:
    """On which side (front, left, back, right) of the anchor the target is; never top or bottom."""
    if not (arrays.shared_scale and arrays.has_front[anchor]):
        return None
    bearing, elevation = arrays.bearing[anchor][target], arrays.elevation[anchor][target]
    judged = judge_side(bearing, elevation, margins)
    if judged is None or judged[0] not in SIDES:
        return None
    return Verdict(judged[0], {"bearing": bearing, "elevation": elevation}, judged[1])
