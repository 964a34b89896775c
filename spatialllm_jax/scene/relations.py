"""The seven predicates of SpatialVQA, each with margins (DESIGN §4; paper, Supplement B).

A predicate returns a `Verdict`, or None when the case is too close to call. All numbers it needs are
computed once per scene (`SceneArrays`), so that asking is cheap. Ratios are taken against the larger
of the two quantities. Gaps in metres are required of metric scenes only. Where objects share no scale
(`Scene.shared_scale`), nothing is said that compares the positions of two of them; where no vertical is
known (`geometry.vertical`), nothing about heights or about the sides of an object. Where boxes are estimates, a case
must be clear for every place they may be in (`scene.uncertainty`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from spatialllm_jax.scene import geometry
from spatialllm_jax.scene.types import Scene
from spatialllm_jax.scene.uncertainty import Errors, scene_errors

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
        number_share, number_degrees: lengths and angles are said of estimated boxes only if they are off by no
            more than this share of the length, or this many degrees.
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
    number_share: float = 0.2
    number_degrees: float = 20.0


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
        errors: how far all of these may be off; None when nothing in the scene is an estimate.
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
    errors: Errors | None = None


def scene_arrays(scene: Scene) -> SceneArrays:
    """Computes `SceneArrays` for a scene; about 0.1 ms."""
    n = len(scene.objects)
    if n == 0:
        return SceneArrays(scene.metric, scene.shared_scale, geometry.vertical(scene)[1],
                           [], [], [], [], [], [], [], [], [], [])
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
        errors=scene_errors(scene),
    )


def _angle(cosine: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def judge_closer(a: float, b: float, metric: bool, gap: float, ratio: float) -> str | None:
    """Which of two distances is clearly smaller: "first", "second" or None."""
    difference = abs(a - b)
    if difference < ratio * max(a, b) or (metric and difference < gap):
        return None
    return "first" if a < b else "second"


def judge_side(bearing: float, elevation: float, margins: Margins, bearing_error: float = 0.0,
               elevation_error: float = 0.0) -> tuple[str, float] | None:
    """(side, margin in degrees) of a direction in an object's horizontal frame, or None.

    Args:
        bearing_error, elevation_error: degrees by which the direction may be off.
    """
    if abs(elevation) - elevation_error >= margins.top_elevation:
        return ("top" if elevation > 0 else "bottom"), abs(elevation) - 45.0
    if abs(elevation) + elevation_error > margins.side_elevation:
        return None
    quarter = round(bearing / 90.0)
    off = abs(bearing - 90.0 * quarter)
    if off + bearing_error > margins.side_degrees:
        return None
    return SIDES[quarter % 4], 45.0 - off


def _judge_lengths(arrays: SceneArrays, i: tuple[int, int], j: tuple[int, int], values: tuple[float, float],
                   gap: float, ratio: float) -> str | None:
    """`judge_closer` of the distances i and j (rows and columns), in the worst case that the errors allow."""
    answer = judge_closer(*values, arrays.metric, gap, ratio)
    if answer is None or arrays.errors is None:
        return answer
    near, far = arrays.errors.nearest, arrays.errors.farthest
    worst = (far[i[0]][i[1]], near[j[0]][j[1]]) if answer == "first" else (near[i[0]][i[1]], far[j[0]][j[1]])
    return answer if judge_closer(*worst, arrays.metric, gap, ratio) == answer else None


def _direction_errors(arrays: SceneArrays, i: int, j: int) -> tuple[float, float]:
    """Degrees by which bearing and elevation of the direction from i to j may be off."""
    return (0.0, 0.0) if arrays.errors is None else (arrays.errors.bearing[i][j], arrays.errors.elevation[i][j])


def length_sure(arrays: SceneArrays, i: int, j: int, margins: Margins) -> bool:
    """Whether the distance from i to j (-1: the camera) is known well enough to be said as a number."""
    if arrays.errors is None:
        return True
    near, far = arrays.errors.nearest[i][j], arrays.errors.farthest[i][j]
    value = arrays.distance[i] if j == -1 else arrays.between[i][j]
    return max(far - value, value - near) <= margins.number_share * value


def angle_sure(arrays: SceneArrays, i: int, limit: float) -> bool:
    """Whether the viewpoint of object i is known to within `limit` degrees."""
    return arrays.errors is None or arrays.errors.turn[i] <= limit


def closer_to_camera(arrays: SceneArrays, a: int, b: int, margins: Margins) -> Verdict | None:
    """Which of two objects' centres is closer to the camera."""
    if not arrays.shared_scale:
        return None
    first, second = arrays.distance[a], arrays.distance[b]
    answer = _judge_lengths(arrays, (a, -1), (b, -1), (first, second), margins.camera_gap, margins.camera_ratio)
    if answer is None:
        return None
    return Verdict(answer, {"distance_first": first, "distance_second": second}, abs(first - second))


def closer_to_object(arrays: SceneArrays, anchor: int, a: int, b: int, margins: Margins) -> Verdict | None:
    """Which of two objects' centres is closer to the anchor's centre."""
    if not arrays.shared_scale:
        return None
    first, second = arrays.between[anchor][a], arrays.between[anchor][b]
    answer = _judge_lengths(arrays, (anchor, a), (anchor, b), (first, second), margins.object_gap,
                            margins.object_ratio)
    if answer is None:
        return None
    return Verdict(answer, {"distance_first": first, "distance_second": second}, abs(first - second))


def facing_camera(arrays: SceneArrays, a: int, margins: Margins) -> Verdict | None:
    """Which side of an object faces the camera: a side, "top" or "bottom"."""
    if not arrays.has_front[a]:
        return None
    bearing, elevation = arrays.bearing[a][-1], arrays.elevation[a][-1]
    judged = judge_side(bearing, elevation, margins, *_direction_errors(arrays, a, -1))
    if judged is None:
        return None
    return Verdict(judged[0], {"bearing": bearing, "elevation": elevation}, judged[1])


def facing_object(arrays: SceneArrays, anchor: int, a: int, b: int, margins: Margins) -> Verdict | None:
    """Which of two objects the anchor's front points at."""
    if not (arrays.shared_scale and arrays.has_front[anchor]):
        return None
    first, second = arrays.off_front[anchor][a], arrays.off_front[anchor][b]
    if arrays.errors is None:
        off, off_other = 0.0, 0.0
    else:
        known, turn = arrays.errors.direction[anchor], arrays.errors.turn[anchor]
        off, off_other = (known[a] + turn, known[b] + turn) if first < second else (known[b] + turn, known[a] + turn)
    if min(first, second) + off > margins.facing_degrees or max(first, second) - off_other < margins.facing_other:
        return None
    answer = "first" if first < second else "second"
    return Verdict(answer, {"angle_first": first, "angle_second": second}, abs(first - second))


def same_direction(arrays: SceneArrays, a: int, b: int, margins: Margins) -> Verdict | None:
    """Whether two objects face the same or very different directions."""
    if not (arrays.has_front[a] and arrays.has_front[b]):
        return None
    angle = arrays.fronts[a][b]
    off = 0.0 if arrays.errors is None else arrays.errors.turn[a] + arrays.errors.turn[b]
    if margins.same_degrees - off < angle < margins.different_degrees + off:
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
    sure, tallest = gap, taller
    if arrays.errors is not None:
        sure -= arrays.errors.rise[a][b]
        tallest = max(arrays.extent[i] + arrays.errors.extent[i] for i in (a, b))
    if sure < margins.higher_ratio * tallest or (arrays.metric and sure < margins.higher_gap):
        return None
    answer = "first" if first > second else "second"
    return Verdict(answer, {"height_first": first, "height_second": second, "taller": taller}, gap)


def on_which_side(arrays: SceneArrays, anchor: int, target: int, margins: Margins) -> Verdict | None:
    """On which side (front, left, back, right) of the anchor the target is; never top or bottom."""
    if not (arrays.shared_scale and arrays.has_front[anchor]):
        return None
    bearing, elevation = arrays.bearing[anchor][target], arrays.elevation[anchor][target]
    judged = judge_side(bearing, elevation, margins, *_direction_errors(arrays, anchor, target))
    if judged is None or judged[0] not in SIDES:
        return None
    return Verdict(judged[0], {"bearing": bearing, "elevation": elevation}, judged[1])
