"""How far estimated boxes may be off, and what that does to the quantities of the predicates.

An estimated object (`Object3D.uncertainty`) does not have a place but a set of places: its centre may move along the
box's own axes by so much, the box may be turned by so much. Everything here follows from the support function of that
set, h(u) = the farthest it reaches along u. A case is asked only if it is clear, by the same margins, for every place
in the sets; objects are taken to move independently, so an error that all share is counted twice, not missed.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from spatialllm_jax.scene import geometry
from spatialllm_jax.scene.types import Scene

Rows = list[list[float]]


@dataclasses.dataclass(frozen=True, eq=False)
class Errors:
    """Largest errors of `SceneArrays`' quantities, for N objects.

    Attributes:
        nearest, farthest: [N][N+1] bounds of the distance between two centres; column N is the camera.
        direction: [N][N+1] degrees between the true and the estimated direction from i to j.
        turn: [N] degrees between the true and the estimated rotation.
        bearing, elevation: [N][N+1] degrees; the bearing's hold what i's rotation may be off.
        rise: [N][N] of the difference of two heights.
        extent: [N] by which the vertical extent may be off.
        reach: the sets that all of this follows from.
    """

    nearest: Rows
    farthest: Rows
    direction: Rows
    turn: list[float]
    bearing: Rows
    elevation: Rows
    rise: Rows
    extent: list[float]
    reach: Reach


class Reach:
    """The sets in which N centres lie.

    Attributes:
        axes: [N, 3, 3], columns are the boxes' axes in the camera frame.
        low, high: [N, 3] metres that the centres may move against and along these axes.
        size: [N, 3] metres by which the extents may be off.
    """

    def __init__(self, scene: Scene) -> None:
        given = [o.uncertainty for o in scene.objects]
        none = np.zeros(3)
        self.axes: Float[np.ndarray, "N 3 3"] = np.array([o.box.rotation for o in scene.objects], float)
        self.low = np.array([none if u is None else u.center[0] for u in given], float).reshape(-1, 3)
        self.high = np.array([none if u is None else u.center[1] for u in given], float).reshape(-1, 3)
        self.size = np.array([none if u is None else u.size for u in given], float).reshape(-1, 3)

    def along(self, directions: Float[np.ndarray, "N ... 3"]) -> Float[np.ndarray, "N ..."]:
        """h(u) of each object's set for its own directions, in metres."""
        parts = np.einsum("n...i,nik->n...k", directions, self.axes)
        shape = (len(self.axes), *[1] * (parts.ndim - 2), 3)
        return np.maximum(parts * self.high.reshape(shape), -parts * self.low.reshape(shape)).sum(axis=-1)

    def across(self, axis: Float[np.ndarray, "3"]) -> Float[np.ndarray, " N"]:
        """The larger of h(axis) and h(-axis)."""
        both = np.stack([axis, -axis])
        return self.along(np.broadcast_to(both, (len(self.axes), 2, 3))).max(axis=1)

    def extents(self, axis: Float[np.ndarray, "3"]) -> Float[np.ndarray, " N"]:
        """By how much the boxes' extents along an axis may be off, in metres."""
        return (np.abs(np.einsum("nik,i->nk", self.axes, axis)) * self.size).sum(axis=-1)


def sway(distance: Float[np.ndarray, "..."], tilt: float) -> Float[np.ndarray, "..."]:
    """Metres that a vertical which is `tilt` degrees off moves, along any axis, what is this far away."""
    return distance * np.sin(np.radians(min(tilt, 90.0)))


def uncertain(scene: Scene) -> bool:
    """Whether anything in the scene is estimated; otherwise there is nothing to widen."""
    return scene.camera.gravity_error > 0 or any(o.uncertainty is not None for o in scene.objects)


def scene_errors(scene: Scene) -> Errors | None:
    """Bounds of all quantities of a scene; None when it holds no estimate."""
    if not scene.objects or not uncertain(scene):
        return None
    reach, n = Reach(scene), len(scene.objects)
    up = geometry.up_vector(scene)
    tilt = scene.camera.gravity_error
    centers = np.array([o.box.center for o in scene.objects], float)
    offset = np.concatenate([centers, np.zeros((1, 3))])[None] - centers[:, None]       # [N, N+1, 3] from i to j
    length = np.linalg.norm(offset, axis=-1)
    ahead = offset / np.maximum(length, 1e-9)[..., None]
    aside, below = _perpendicular(ahead, up)

    further, closer = _relative(reach, ahead), _relative(reach, -ahead)
    off_side = np.hypot(_either(reach, aside), _either(reach, below))
    direction = _angle(off_side, length - closer)

    level = offset - (offset @ up)[..., None] * up
    run = np.linalg.norm(level, axis=-1)
    level = level / np.maximum(run, 1e-9)[..., None]
    sideways = np.cross(np.broadcast_to(up, level.shape), level)
    turn = np.array([0.0 if o.uncertainty is None else o.uncertainty.turn for o in scene.objects])
    swing = _angle(_either(reach, sideways), run - _relative(reach, -level))
    vertical = reach.across(up)
    rise = vertical[:, None] + vertical[None] + sway(run[:, :n], tilt)
    return Errors(
        nearest=np.maximum(length - closer, 0).tolist(), farthest=np.hypot(length + further, off_side).tolist(),
        direction=direction.tolist(), turn=turn.tolist(), bearing=(swing + turn[:, None] + tilt).tolist(),
        elevation=(direction + tilt).tolist(), rise=rise.tolist(), extent=reach.extents(up).tolist(), reach=reach,
    )  # fmt: skip


def _relative(reach: Reach, u: Float[np.ndarray, "N M 3"]) -> Float[np.ndarray, "N M"]:
    """How far j can move along `u[i, j]` relative to i; the camera, the last j, stays."""
    n = len(u)
    total = reach.along(-u)
    total[:, :n] += reach.along(u[:, :n].transpose(1, 0, 2)).T
    return total


def _either(reach: Reach, u: Float[np.ndarray, "N M 3"]) -> Float[np.ndarray, "N M"]:
    return np.maximum(_relative(reach, u), _relative(reach, -u))


def _perpendicular(u: Float[np.ndarray, "N M 3"], up: Float[np.ndarray, "3"]
                   ) -> tuple[Float[np.ndarray, "N M 3"], Float[np.ndarray, "N M 3"]]:
    """Two unit vectors orthogonal to each `u` and to one another."""
    helper = np.where(np.abs(u @ up)[..., None] < 0.9, up, np.roll(up, 1) + np.array([0.3, 0.0, 0.1]))
    first = np.cross(u, helper)
    first = first / np.maximum(np.linalg.norm(first, axis=-1), 1e-9)[..., None]
    return first, np.cross(u, first)


def _angle(across: Float[np.ndarray, "N M"], along: Float[np.ndarray, "N M"]) -> Float[np.ndarray, "N M"]:
    """Degrees by which a direction may be off; 180 where the two sets may meet."""
    return np.where(along > 0, np.degrees(np.arctan2(across, along)), np.where(across > 0, 180.0, 0.0))
