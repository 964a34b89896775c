"""Many poses at once: ImageNet3D's angles and rotations, from the ray and back, and how far poses are apart.

Degrees; (azimuth, elevation, theta) as in `scene.geometry.viewpoint`, whose arithmetic this is, row by row. Angles (and
an estimator's output) are *allocentric*: relative to the ray from the camera to the object, so that equal angles look
equal wherever in the picture the object is. `Box3D.rotation` is *egocentric*: the object's axes (front +x, down +y,
left +z) as columns in the camera's frame. On the optical axis the two agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from spatialllm_jax.scene.geometry import back_project, rotation_between, view_rotation

AXIS = np.array([0.0, 0.0, 1.0])    # the optical axis: allocentric and egocentric rotations agree there


def rotations_from_angles(angles: Float[np.ndarray, "N 3"], rays: Float[np.ndarray, "N 3"] | None = None,
                          ) -> Float[np.ndarray, "N 3 3"]:
    """Rotations of objects that are seen at these angles.

    Args:
        rays: directions to the objects, of any length, camera frame; None stays allocentric (on the optical axis).
    """
    azimuth, elevation, theta = np.asarray(angles, float).T
    t = np.radians(theta)
    # Counter-clockwise in the picture is a negative turn about +z, since +y points down.
    spin = np.zeros((len(t), 3, 3))
    spin[:, 0, 0] = spin[:, 1, 1] = np.cos(t)
    spin[:, 0, 1], spin[:, 1, 0], spin[:, 2, 2] = np.sin(t), -np.sin(t), 1.0
    allocentric = spin @ view_rotation(azimuth, elevation)
    return allocentric if rays is None else egocentric(allocentric, rays)


def angles_from_rotations(rotations: Float[np.ndarray, "N 3 3"], rays: Float[np.ndarray, "N 3"] | None = None,
                          ) -> Float[np.ndarray, "N 3"]:
    """(azimuth in [0, 360), elevation in [-90, 90], theta in (-180, 180]) of rotations; the inverse of the above.

    Seen from straight above or below, azimuth and theta turn about the same axis: any split of their sum is right.
    """
    rotations = np.asarray(rotations, float)
    if rays is not None:
        rotations = allocentric(rotations, rays)
    to_camera = -rotations[:, 2]
    elevation = np.arcsin(np.clip(-to_camera[:, 1], -1, 1))
    azimuth = np.arctan2(to_camera[:, 2], to_camera[:, 0])
    spin = rotations @ np.swapaxes(view_rotation(np.degrees(azimuth), np.degrees(elevation)), 1, 2)
    theta = -np.arctan2(spin[:, 1, 0], spin[:, 0, 0])
    return np.degrees(np.stack([azimuth % (2 * np.pi), elevation, theta], -1))


def egocentric(rotations: Float[np.ndarray, "N 3 3"], rays: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3 3"]:
    """Allocentric rotations in the camera's frame: turned with the smallest rotation from the axis to the ray."""
    return _to_rays(rays) @ rotations


def allocentric(rotations: Float[np.ndarray, "N 3 3"], rays: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3 3"]:
    """Egocentric rotations relative to the rays; the inverse of `egocentric`."""
    return np.swapaxes(_to_rays(rays), 1, 2) @ rotations


def rays_through(pixels: Float[np.ndarray, "N 2"], intrinsics: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "N 3"]:
    """Unit rays through pixels, camera frame."""
    rays = back_project(np.asarray(pixels, float), np.ones(len(pixels)), intrinsics)
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def pose_errors(found: Float[np.ndarray, "N 3 3"], true: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, " N"]:
    """||log(R1^T R2)||_F / sqrt(2) in degrees, [0, 180]: the angle of the rotation between the two.

    From the chord, ||R1 - R2||_F = 2 sqrt(2) sin(angle / 2), which unlike the trace keeps small angles exact.
    """
    chord = np.linalg.norm(np.asarray(found, float) - np.asarray(true, float), axis=(-2, -1))
    return np.degrees(2 * np.arcsin(np.clip(chord / np.sqrt(8), 0, 1)))


def circular_difference(a: Float[np.ndarray, "..."] | float, b: Float[np.ndarray, "..."] | float
                        ) -> Float[np.ndarray, "..."]:
    """a - b in degrees, in [-180, 180)."""
    return (np.asarray(a) - np.asarray(b) + 180.0) % 360.0 - 180.0


def mirrored(angles: Float[np.ndarray, "N 3"] | Sequence[Sequence[float]]) -> Float[np.ndarray, "N 3"]:
    """Angles of the picture flipped left to right, for objects that are their own mirror image (most with a front)."""
    angles = np.asarray(angles, float).reshape(-1, 3)
    return np.stack([-angles[:, 0] % 360.0, angles[:, 1], -angles[:, 2]], -1)


def _to_rays(rays: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3 3"]:
    """Smallest rotations from the optical axis to rays of any length."""
    rays = np.asarray(rays, float)
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    return np.array([rotation_between(AXIS, ray) for ray in rays]).reshape(-1, 3, 3)
