"""Geometry of oriented boxes seen by a pinhole camera: projection, viewpoints, 2D boxes.

Frames: camera +x right, +y down, +z forward; object front = +x, down = +y, left = +z (Omni3D).
Angles are degrees. Nothing here knows about questions.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from spatialllm_jax.scene.types import Box3D, Camera, Scene

# Signs of the eight corners along the object's (x, y, z), in the order of Omni3D's `bbox3D_cam`.
CORNER_SIGNS: Float[np.ndarray, "8 3"] = np.array(
    [[-1, -1, -1], [1, -1, -1], [1, 1, -1], [-1, 1, -1], [-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]], float
)
# The twelve edges of a box as pairs of corner indices; the first four bound the front face (+x).
BOX_EDGES: tuple[tuple[int, int], ...] = (
    (1, 2), (2, 6), (6, 5), (5, 1), (0, 3), (3, 7), (7, 4), (4, 0), (0, 1), (3, 2), (7, 6), (4, 5),
)  # fmt: skip
_NEAR = 1e-3


def box_corners(box: Box3D) -> Float[np.ndarray, "8 3"]:
    """Corners in the camera frame, ordered as Omni3D's `bbox3D_cam` (x = ±l/2, y = ±h/2, z = ±w/2)."""
    return box.center + (CORNER_SIGNS * (box.size / 2)) @ box.rotation.T


def project(
    points: Float[np.ndarray, "... 3"], intrinsics: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "... 2"]:
    """Pixels of points in the camera frame. Points at or behind the camera give NaN."""
    homogeneous = points @ intrinsics.T
    depth = homogeneous[..., 2:]
    safe = np.where(depth > _NEAR, depth, np.nan)
    return homogeneous[..., :2] / safe


def back_project(
    pixels: Float[np.ndarray, "... 2"], depth: Float[np.ndarray, ...], intrinsics: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "... 3"]:
    """Points in the camera frame at z = `depth` behind `pixels`; the inverse of `project`."""
    homogeneous = np.concatenate([pixels, np.ones_like(pixels[..., :1])], axis=-1)
    rays = homogeneous @ np.linalg.inv(intrinsics).T
    return rays * np.asarray(depth)[..., None]


def clip_segment(
    start: Float[np.ndarray, "3"], end: Float[np.ndarray, "3"], near: float = 0.05
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]] | None:
    """The part of a segment with z >= `near`, or None when all of it lies behind."""
    if start[2] < near and end[2] < near:
        return None
    if start[2] < near or end[2] < near:
        crossing = start + (end - start) * ((near - start[2]) / (end[2] - start[2]))
        start, end = (crossing, end) if start[2] < near else (start, crossing)
    return start, end


def projected_bbox(box: Box3D, camera: Camera, clip: bool = True) -> Float[np.ndarray, "4"] | None:
    """Tight 2D box x1, y1, x2, y2 (pixels) of the projected 3D box; None when it is out of view.

    Edges that cross the image plane are cut at z = 5 cm first, so a box beside the camera does not
    wrap around. With `clip`, the result is cut to the image.
    """
    corners = box_corners(box)
    points: list[np.ndarray] = []
    for i, j in BOX_EDGES:
        segment = clip_segment(corners[i], corners[j])
        if segment is not None:
            points.extend(segment)
    if not points:
        return None
    pixels = project(np.array(points), camera.intrinsics)
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    result = np.concatenate([low, high])
    if not clip:
        return result
    limits = np.array([camera.width, camera.height, camera.width, camera.height], float)
    result = np.clip(result, 0, limits)
    return result if result[2] > result[0] and result[3] > result[1] else None


def truncation_of(box: Box3D, camera: Camera) -> float:
    """Share of the projected 3D box's area that lies outside the image, in [0, 1]."""
    full, inside = projected_bbox(box, camera, clip=False), projected_bbox(box, camera)
    if full is None or inside is None:
        return 1.0
    area = (full[2] - full[0]) * (full[3] - full[1])
    return float(1.0 - (inside[2] - inside[0]) * (inside[3] - inside[1]) / max(area, 1e-9))


def up_vector(scene: Scene) -> Float[np.ndarray, "3"]:
    """Unit vector against gravity in the camera frame; see `vertical` for where it comes from."""
    return vertical(scene)[0]


def vertical(scene: Scene) -> tuple[Float[np.ndarray, "3"], bool]:
    """(unit vector against gravity in the camera frame, whether anything in the scene says so).

    Taken from gravity where it is known, else from the mean of the objects' own up axes where these are
    upright and agree. Otherwise it is the camera's -y and the flag is False: a made-up vertical, from
    which no answer may be derived.
    """
    if scene.camera.gravity is not None:
        up = -np.asarray(scene.camera.gravity, float)
        return up / np.linalg.norm(up), True
    if scene.upright and scene.objects:
        mean = -np.mean([o.box.rotation[:, 1] for o in scene.objects], axis=0)
        length = np.linalg.norm(mean)
        if length > 0.5:
            return mean / length, True
    return np.array([0.0, -1.0, 0.0]), False


def vote_up(
    rotations: Float[np.ndarray, "n 3 3"], agree: float = 10.0, share: float = 0.6, tilt: float = 35.0
) -> Float[np.ndarray, "3"] | None:
    """Unit "up" that most boxes share, whichever of their axes it is; None without a consensus.

    For boxes whose axes carry no meaning: furniture and walls are aligned with the vertical, so each box
    votes with the axis (either way along it) that is nearest to the camera's up. The winner needs the
    votes of at least three boxes and of `share` of them within `agree` degrees, and must be within
    `tilt` degrees of the camera's up; beyond that a horizontal axis would be as near as the vertical.
    """
    if len(rotations) < 3:
        return None
    nearest = np.abs(rotations[:, 1, :]).argmax(axis=1)
    votes = rotations[np.arange(len(rotations)), :, nearest]
    votes = votes * -np.sign(votes[:, 1:2])  # the camera's up is -y
    near = votes @ votes.T >= np.cos(np.radians(agree))
    supporters = near[near.sum(axis=1).argmax()]
    if supporters.sum() < max(3, share * len(votes)):
        return None
    up = votes[supporters].mean(axis=0)
    up /= np.linalg.norm(up)
    return up if -up[1] >= np.cos(np.radians(tilt)) else None


def gravity_from_ground(
    points: Float[np.ndarray, "n 3"], tilt: float = 0.1, roughness: float = 0.3
) -> Float[np.ndarray, "3"]:
    """Unit gravity in the frame of a camera that looks along a road, from points on the road.

    The least-squares line y = height - z * slope, with a prior of slope 0 ± `tilt` and deviations of
    the points of ± `roughness` metres: few or level points leave gravity at +y. Roll is taken as 0.
    A sloping road passes for level, so objects on one road come out equally high.
    """
    if len(points) == 0:
        return np.array([0.0, 1.0, 0.0])
    offset = points - points.mean(axis=0)
    slope = -(offset[:, 2] @ offset[:, 1]) / (offset[:, 2] @ offset[:, 2] + (roughness / tilt) ** 2)
    return np.array([0.0, 1.0, slope]) / np.hypot(1.0, slope)


def rotation_between(a: Float[np.ndarray, "3"], b: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """The smallest rotation that takes unit vector `a` to unit vector `b` (Rodrigues).

    For opposite vectors any perpendicular axis serves; the one nearest to +y is taken.
    """
    cosine = float(a @ b)
    if cosine < -1 + 1e-9:
        axis = np.cross(a, [0.0, 1.0, 0.0])
        if np.linalg.norm(axis) < 1e-6:
            axis = np.cross(a, [1.0, 0.0, 0.0])
        axis /= np.linalg.norm(axis)
        return 2 * np.outer(axis, axis) - np.eye(3)
    v = np.cross(a, b)
    skew = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + cosine)


def viewpoint(box: Box3D) -> tuple[float, float, float]:
    """(azimuth, elevation, theta) in degrees of a box relative to the ray that reaches its centre.

    The convention of ImageNet3D: azimuth 0 = the object faces the camera, 90 = its own left side does
    (it faces the left of the image), in [0, 360); elevation > 0 = seen from above; theta = in-plane
    rotation, counter-clockwise in the image, in (-180, 180].
    """
    ray = box.center / np.linalg.norm(box.center)
    to_camera = -(ray @ box.rotation)  # in the object frame
    elevation = np.degrees(np.arcsin(np.clip(-to_camera[1], -1, 1)))
    azimuth = np.degrees(np.arctan2(to_camera[2], to_camera[0])) % 360.0
    aligned = rotation_between(ray, np.array([0.0, 0.0, 1.0])) @ box.rotation
    spin = aligned @ view_rotation(azimuth, elevation).T  # a rotation about the optical axis
    theta = -np.degrees(np.arctan2(spin[1, 0], spin[0, 0]))
    return float(azimuth), float(elevation), float(theta)


def rotation_from_viewpoint(
    azimuth: float, elevation: float, theta: float, center: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "3 3"]:
    """`Box3D.rotation` of an object at `center` seen at these angles; the inverse of `viewpoint`."""
    ray = np.asarray(center, float) / np.linalg.norm(center)
    angle = np.radians(-theta)
    spin = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return rotation_between(np.array([0.0, 0.0, 1.0]), ray) @ spin @ view_rotation(azimuth, elevation)


def view_rotation(
    azimuth: float | Float[np.ndarray, "..."], elevation: float | Float[np.ndarray, "..."]
) -> Float[np.ndarray, "... 3 3"]:
    """Rotations of upright objects on the optical axis seen at these angles in degrees (theta = 0)."""
    a, e = np.radians(azimuth), np.radians(elevation)
    # The direction to the camera, the image's right and the image's down, all in the object frame.
    to_camera = np.stack([np.cos(e) * np.cos(a), -np.sin(e), np.cos(e) * np.sin(a)], axis=-1)
    right = np.stack([-np.sin(a), np.zeros_like(a), np.cos(a)], axis=-1)
    down = np.cross(-to_camera, right)
    return np.stack([right, down, -to_camera], axis=-2)


def rotation_y(heading: Float[np.ndarray, "3"], up: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation of an upright object whose front is `heading`, made orthogonal to `up` first."""
    front = heading - (heading @ up) * up
    front = front / np.linalg.norm(front)
    return np.stack([front, -up, np.cross(front, -up)], axis=1)


def valid_box(box: Box3D) -> str | None:
    """Why a box cannot be used ("nan", "size", "rotation"), or None when it is sound."""
    if not (np.isfinite(box.center).all() and np.isfinite(box.size).all() and np.isfinite(box.rotation).all()):
        return "nan"
    if (box.size <= 0).any():
        return "size"
    if np.abs(box.rotation @ box.rotation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(box.rotation) < 0:
        return "rotation"
    return None


def bbox_iou(a: Float[np.ndarray, "4"], b: Float[np.ndarray, "4"]) -> float:
    """Intersection over union of two 2D boxes x1, y1, x2, y2."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return float(inter / union)
