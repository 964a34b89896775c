"""Poses in numbers: against ImageNet3D's camera model, SciPy's rotations, and a matrix logarithm."""

import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.transform import Rotation

from spatialllm_jax.scene import pose
from spatialllm_jax.scene.geometry import project
from tests.sources.test_imagenet3d import pixels_of

RNG = np.random.default_rng(0)
ANGLES = np.stack([RNG.uniform(0, 360, 60), RNG.uniform(-88, 88, 60), RNG.uniform(-180, 180, 60)], -1)
RAYS = np.concatenate([RNG.uniform(-1, 1, (60, 2)), RNG.uniform(0.5, 2, (60, 1))], -1)


def around(a, b):
    """|a - b| on a circle, degrees."""
    return np.abs((a - b + 180) % 360 - 180)


def test_angles_are_imagenet3ds():
    """Points of a CAD model (front -y, left +x, up +z) under their projection and under our rotation: same pixels."""
    cad = RNG.uniform(-0.5, 0.5, (8, 3))
    own = np.stack([-cad[:, 1], -cad[:, 2], cad[:, 0]], axis=1)     # front, down, left
    intrinsics = np.array([[900.0, 0, 320], [0, 900, 240], [0, 0, 1]])
    for angles, rotation in zip(ANGLES, pose.rotations_from_angles(ANGLES), strict=True):
        expected = pixels_of(cad, *np.radians(angles), 7.0, 900.0, 320, 240)
        np.testing.assert_allclose(project([0, 0, 7.0] + own @ rotation.T, intrinsics), expected, atol=1e-6)


def test_angles_as_turns_about_axes():
    """The same rotation as SciPy composes it: theta about the ray, elevation about right, azimuth about the object's
    own vertical, from an object whose front looks back along the optical axis."""
    facing = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])      # columns: front to the camera, down, left to the right
    for (azimuth, elevation, theta), found in zip(ANGLES, pose.rotations_from_angles(ANGLES), strict=True):
        turns = Rotation.from_euler("ZXY", [-theta, elevation, azimuth], degrees=True).as_matrix()
        np.testing.assert_allclose(found, turns @ facing, atol=1e-12)


@pytest.mark.parametrize("rays", [None, RAYS])
def test_there_and_back(rays):
    found = pose.angles_from_rotations(pose.rotations_from_angles(ANGLES, rays), rays)
    assert around(found[:, [0, 2]], ANGLES[:, [0, 2]]).max() < 1e-6 and np.abs(found[:, 1] - ANGLES[:, 1]).max() < 1e-6
    assert (found[:, 0] >= 0).all() and (found[:, 0] < 360).all()


@pytest.mark.parametrize("elevation", [90.0, -90.0])
def test_seen_from_straight_above_or_below(elevation):
    """Azimuth and theta turn about one axis: any split that gives the same rotation is right."""
    rotation = pose.rotations_from_angles(np.array([[40.0, elevation, 25.0]]))
    again = pose.rotations_from_angles(pose.angles_from_rotations(rotation))
    np.testing.assert_allclose(again, rotation, atol=1e-6)


def test_egocentric_is_turned_with_the_ray():
    allocentric = pose.rotations_from_angles(ANGLES)
    egocentric = pose.egocentric(allocentric, RAYS)
    rays = RAYS / np.linalg.norm(RAYS, axis=1, keepdims=True)
    # What lies along the axis allocentrically lies along the ray egocentrically, and the turn is the smallest one.
    turn = egocentric @ np.swapaxes(allocentric, 1, 2)
    np.testing.assert_allclose(turn[:, :, 2], rays, atol=1e-12)
    smallest = np.degrees(np.arccos(rays[:, 2]))
    np.testing.assert_allclose(np.degrees(Rotation.from_matrix(turn).magnitude()), smallest, atol=1e-6)
    np.testing.assert_allclose(pose.allocentric(egocentric, RAYS), allocentric, atol=1e-12)


def test_a_car_beside_the_road():
    """By hand: a car 45° to the right that heads straight away (+z) shows its left rear corner."""
    heading_away = np.array([[[0.0, 0, -1], [0, 1, 0], [1, 0, 0]]])      # front +z, down +y, left -x
    azimuth, elevation, theta = pose.angles_from_rotations(heading_away, np.array([[1.0, 0, 1]]))[0]
    assert azimuth == pytest.approx(135) and elevation == pytest.approx(0) and theta == pytest.approx(0)
    np.testing.assert_allclose(pose.angles_from_rotations(heading_away)[0, 0], 180)


def test_error_is_the_matrix_logarithms():
    a, b = pose.rotations_from_angles(ANGLES[:30]), pose.rotations_from_angles(ANGLES[30:])
    expected = [np.degrees(np.linalg.norm(scipy.linalg.logm(x.T @ y), "fro") / np.sqrt(2))
                for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(pose.pose_errors(a, b), expected, atol=1e-6)
    tiny = Rotation.from_rotvec([[1e-7, 0, 0]]).as_matrix()      # where an arccosine of the trace would give 0
    assert np.radians(pose.pose_errors(tiny, np.eye(3)[None]))[0] == pytest.approx(1e-7, rel=1e-3)
    assert pose.pose_errors(np.diag([1.0, -1, -1])[None], np.eye(3)[None])[0] == pytest.approx(180)


def test_mirror_images():
    """A mirror-symmetric object and its picture flipped: every point's mirror image lands on the mirrored pixel."""
    points = RNG.uniform(-1, 1, (5, 3))
    other = points * [1, 1, -1]                                 # its left is its right
    rotations, flipped = (pose.rotations_from_angles(a) for a in (ANGLES, pose.mirrored(ANGLES)))
    for one, two in zip(rotations, flipped, strict=True):
        np.testing.assert_allclose(other @ two.T, (points @ one.T) * [-1, 1, 1], atol=1e-12)


def test_rays_through_pixels():
    intrinsics = np.array([[500.0, 0, 320], [0, 400, 240], [0, 0, 1]])
    rays = pose.rays_through(np.array([[320.0, 240], [820, 240], [320, 640]]), intrinsics)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(rays, [[0, 0, 1], [half, 0, half], [0, half, half]])
