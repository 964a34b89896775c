"""Where down is: the ground plane of a depth map.

Plane finding is by RANSAC over points that belong to no object, then least squares over those that agree. A candidate
must be a floor: its normal within `tilt` degrees of the camera's up, the camera above it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

_TRIALS = 200
_POINTS = 4000


@dataclasses.dataclass(frozen=True, eq=False)
class Plane:
    """Attributes:
    normal: unit vector in the camera frame, against gravity.
    height: of the camera above the plane, metres.
    share: of the points that lie on it.
    """

    normal: Float[np.ndarray, "3"]
    height: float
    share: float


def fit_plane(points: Float[np.ndarray, "P 3"]) -> tuple[Float[np.ndarray, "3"], float]:
    """(unit normal n, offset d) of the least-squares plane n·x + d = 0, the normal on the camera's side (d > 0)."""
    middle = points.mean(axis=0)
    _, _, axes = np.linalg.svd(points - middle, full_matrices=False)
    normal = axes[-1]
    offset = -float(normal @ middle)
    return (normal, offset) if offset >= 0 else (-normal, -offset)


def ground_plane(points: Float[np.ndarray, "P 3"], tolerance: float = 0.02, tilt: float = 40.0, least: float = 0.15
                 ) -> Plane | None:
    """The floor or street in a point cloud, or None where no plane looks like one.

    Args:
        points: camera frame, metres.
        tolerance: a point on the plane is at most this share of its own distance off it.
        tilt: largest angle between the normal and the camera's up, degrees.
        least: smallest share of the points.
    """
    if len(points) < 3:
        return None
    points = points[:: max(1, len(points) // _POINTS)]
    reach = tolerance * np.linalg.norm(points, axis=1)
    rng = np.random.Generator(np.random.Philox(key=[len(points), 7]))
    triples = points[rng.integers(len(points), size=(_TRIALS, 3))]
    normals = np.cross(triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0])
    length = np.linalg.norm(normals, axis=1)
    normals = normals / np.maximum(length, 1e-12)[:, None]
    offsets = -np.einsum("tk,tk->t", normals, triples[:, 0])
    flip = np.where(offsets < 0, -1.0, 1.0)
    normals, offsets = normals * flip[:, None], offsets * flip
    floors = (length > 1e-9) & (-normals[:, 1] >= np.cos(np.radians(tilt)))
    if not floors.any():
        return None
    normals, offsets = normals[floors], offsets[floors]
    votes = (np.abs(points @ normals.T + offsets) < reach[:, None]).sum(axis=0)
    normal, offset = normals[votes.argmax()], float(offsets[votes.argmax()])
    for _ in range(3):
        near = np.abs(points @ normal + offset) < reach
        if near.sum() < max(3, least * len(points)):
            return None
        normal, offset = fit_plane(points[near])
    if -normal[1] < np.cos(np.radians(tilt)):
        return None
    return Plane(normal, offset, float((np.abs(points @ normal + offset) < reach).mean()))
