"""Projection, viewpoints and boxes against closed forms and scipy."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene import geometry
from spatialllm_jax.scene.serialize import scene_from_json, scene_to_json
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage

K = np.array([[200.0, 0, 112], [0, 210.0, 100], [0, 0, 1]])
UP = np.array([0.0, -1.0, 0.0])


def test_corners_follow_omni3d_order():
    # The pedestrian of KITTI 000000 as Omni3D writes it, worked out by hand for an unrotated box.
    box = Box3D(np.array([1.0, 2.0, 8.0]), np.array([4.0, 2.0, 6.0]), np.eye(3))
    corners = geometry.box_corners(box)
    assert corners[0].tolist() == [-1, 1, 5]
    assert corners[1].tolist() == [3, 1, 5]
    assert corners[2].tolist() == [3, 3, 5]
    assert corners[6].tolist() == [3, 3, 11]
    front_face = {i for edge in geometry.BOX_EDGES[:4] for i in edge}
    assert front_face == {i for i in range(8) if corners[i][0] == 3}


def test_edges_have_the_lengths_of_the_box():
    box = Box3D(np.array([0.0, 0, 9]), np.array([4.0, 2.0, 6.0]), Rotation.random(random_state=0).as_matrix())
    corners = geometry.box_corners(box)
    lengths = sorted(round(float(np.linalg.norm(corners[i] - corners[j])), 6) for i, j in geometry.BOX_EDGES)
    assert lengths == [2.0] * 4 + [4.0] * 4 + [6.0] * 4
    assert len({frozenset(edge) for edge in geometry.BOX_EDGES}) == 12


def test_project_and_back_project():
    points = np.random.default_rng(0).uniform([-3, -3, 1], [3, 3, 9], (50, 3))
    pixels = geometry.project(points, K)
    assert pixels[0, 0] == pytest.approx(200 * points[0, 0] / points[0, 2] + 112)
    assert pixels[0, 1] == pytest.approx(210 * points[0, 1] / points[0, 2] + 100)
    np.testing.assert_allclose(geometry.back_project(pixels, points[:, 2], K), points, atol=1e-9)
    assert np.isnan(geometry.project(np.array([0.0, 0, -1]), K)).all()


@pytest.mark.parametrize(
    ("front", "azimuth"),
    [((0, 0, -1), 0), ((-1, 0, 0), 90), ((0, 0, 1), 180), ((1, 0, 0), 270)],
)
def test_azimuth_of_known_poses(front, azimuth):
    """ImageNet3D: 0 faces the camera, 90 faces the left of the image with its own left side to the camera."""
    box = Box3D(np.array([0, 0, 5.0]), np.ones(3), geometry.rotation_y(np.array(front, float), UP))
    found = geometry.viewpoint(box)
    assert found[0] % 360 == pytest.approx(azimuth, abs=1e-6)
    assert found[1:] == pytest.approx((0, 0), abs=1e-6)
    if azimuth == 90:
        assert box.rotation[:, 2] == pytest.approx([0, 0, -1])  # its left points at the camera


def test_elevation_and_theta_of_known_poses():
    seen_from_above = Box3D(np.array([0, 5.0, 5.0]), np.ones(3), geometry.rotation_y(np.array([0, 0, -1.0]), UP))
    assert geometry.viewpoint(seen_from_above)[1] == pytest.approx(45)
    # Turned by 30 degrees counter-clockwise in the image: its up vector leans to the image's left.
    a = np.radians(30)
    turn = np.array([[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]])
    box = Box3D(np.array([0, 0, 5.0]), np.ones(3), turn @ geometry.rotation_y(np.array([0, 0, -1.0]), UP))
    assert -box.rotation[0, 1] < 0
    assert geometry.viewpoint(box) == pytest.approx((0, 0, 30), abs=1e-6)


def test_azimuth_is_relative_to_the_ray():
    """A car that looks along the ray away from the camera shows its back, wherever it stands."""
    for x in (-4.0, 0.0, 4.0):
        center = np.array([x, 0, 5.0])
        box = Box3D(center, np.ones(3), geometry.rotation_y(center, UP))
        assert geometry.viewpoint(box)[0] == pytest.approx(180)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.integers(0, 10_000))
def test_viewpoint_round_trip(seed):
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(random_state=seed).as_matrix()
    center = rng.normal(size=3) * 4
    azimuth, elevation, theta = geometry.viewpoint(Box3D(center, np.ones(3), rotation))
    hypothesis.assume(abs(elevation) < 89)
    np.testing.assert_allclose(
        geometry.rotation_from_viewpoint(azimuth, elevation, theta, center), rotation, atol=1e-6
    )


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.integers(0, 10_000))
def test_rotation_between_is_the_smallest(seed):
    rng = np.random.default_rng(seed)
    a, b = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
    rotation = geometry.rotation_between(a, b)
    np.testing.assert_allclose(rotation @ a, b, atol=1e-9)
    angle = np.linalg.norm(Rotation.from_matrix(rotation).as_rotvec())
    assert angle == pytest.approx(np.arccos(np.clip(a @ b, -1, 1)), abs=1e-6)


@pytest.mark.parametrize("axis", np.concatenate([np.eye(3), -np.eye(3)]).tolist())
def test_rotation_between_opposites(axis):
    axis = np.array(axis)
    rotation = geometry.rotation_between(axis, -axis)
    np.testing.assert_allclose(rotation @ axis, -axis, atol=1e-9)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_projected_bbox_matches_densely_sampled_edges():
    camera = Camera(224, 200, K)
    box = Box3D(np.array([0.5, 0.2, 4.0]), np.array([1.0, 0.5, 0.7]), Rotation.random(random_state=3).as_matrix())
    grid = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 21)] * 3), -1).reshape(-1, 3)
    pixels = geometry.project(box.center + (grid * box.size) @ box.rotation.T, K)
    expected = np.concatenate([pixels.min(0), pixels.max(0)])
    np.testing.assert_allclose(geometry.projected_bbox(box, camera), expected, atol=1e-9)
    assert geometry.truncation_of(box, camera) == pytest.approx(0)


def test_boxes_at_the_edge_and_behind():
    camera = Camera(224, 200, K)
    behind = Box3D(np.array([0, 0, -5.0]), np.ones(3), np.eye(3))
    assert geometry.projected_bbox(behind, camera) is None
    assert geometry.truncation_of(behind, camera) == 1
    across = Box3D(np.array([0, 0.5, 0.0]), np.array([1.0, 0.5, 8.0]), np.eye(3))
    found = geometry.projected_bbox(across, camera)
    assert found is not None and np.isfinite(found).all() and found[3] == 200
    # Half of a thin plate lies right of the image's border x = 224, where x / z = 0.56.
    half = Box3D(np.array([0.56 * 5, 0, 5.0]), np.array([1.0, 1.0, 1e-6]), np.eye(3))
    assert geometry.truncation_of(half, camera) == pytest.approx(0.5, abs=1e-3)


def test_up_vector():
    tilted = Rotation.from_euler("x", 20, degrees=True).as_matrix()
    box = Box3D(np.array([0, 0, 5.0]), np.ones(3), tilted)
    item = Object3D("car", "car", box, np.array([0, 0, 9, 9.0]), True)
    known = Scene(SceneImage("a"), Camera(9, 9, K, np.array([0, 2.0, 0])), (item,), True, "x")
    unknown = Scene(SceneImage("a"), Camera(9, 9, K), (item,), True, "x")
    empty = Scene(SceneImage("a"), Camera(9, 9, K), (), True, "x")
    np.testing.assert_allclose(geometry.up_vector(known), [0, -1, 0])
    np.testing.assert_allclose(geometry.up_vector(unknown), -tilted[:, 1], atol=1e-12)
    np.testing.assert_allclose(geometry.up_vector(empty), [0, -1, 0])
    lying = dataclasses.replace(unknown, upright=False)
    np.testing.assert_allclose(geometry.up_vector(lying), [0, -1, 0])
    assert [geometry.vertical(s)[1] for s in (known, unknown, empty, lying)] == [True, True, False, False]


def named_at_random(pitch, count, seed):
    """Rotations of boxes on a floor seen by a camera pitched by that many degrees; their axes in any order."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        turn = Rotation.from_euler("y", rng.uniform(0, 360), degrees=True)
        naming = Rotation.create_group("O")[rng.integers(24)]
        yield (Rotation.from_euler("x", pitch, degrees=True) * turn * naming).as_matrix()


@pytest.mark.parametrize("pitch", [0, 15, -30, 34])
def test_vote_up_finds_the_shared_axis(pitch):
    expected = Rotation.from_euler("x", pitch, degrees=True).apply([0, -1, 0])
    for seed in range(20):
        rotations = np.array(list(named_at_random(pitch, 5, seed)))
        np.testing.assert_allclose(geometry.vote_up(rotations), expected, atol=1e-9)


def test_vote_up_bears_with_some_outliers_and_no_more():
    standing = list(named_at_random(10, 6, 0))
    thrown = [Rotation.from_euler("zx", [45, 30 + 5 * k], degrees=True).as_matrix() for k in range(6)]
    expected = Rotation.from_euler("x", 10, degrees=True).apply([0, -1, 0])
    np.testing.assert_allclose(geometry.vote_up(np.array(standing + thrown[:4])), expected, atol=1e-9)
    assert geometry.vote_up(np.array(standing[:3] + thrown[:3])) is None
    assert geometry.vote_up(np.array(standing[:2])) is None  # two boxes are no consensus
    assert geometry.vote_up(np.zeros((0, 3, 3))) is None


def test_vote_up_does_not_take_a_wall_for_the_ceiling():
    """Looking steeply down, the axis nearest to the camera's up is a horizontal one: better no answer."""
    aligned = np.array([Rotation.from_euler("x", 50, degrees=True).as_matrix()] * 5)
    assert geometry.vote_up(aligned) is None


@pytest.mark.parametrize("pitch", [-3, 0, 5])
def test_gravity_from_ground(pitch):
    """Points on a level road before a pitched camera, on both sides and 5 to 50 m away."""
    rng = np.random.default_rng(0)
    road = np.stack([rng.uniform(-8, 8, 8), np.full(8, 1.5), rng.uniform(5, 50, 8)], axis=1)
    tilt = Rotation.from_euler("x", pitch, degrees=True)
    found = geometry.gravity_from_ground(tilt.apply(road))
    assert np.degrees(np.arccos(np.clip(found @ tilt.apply([0, 1, 0]), -1, 1))) < 0.1


@pytest.mark.parametrize(
    ("center", "size", "rotation", "fault"),
    [
        ([0, 0, 5], [1, 1, 1], np.eye(3), None),
        ([0, np.nan, 5], [1, 1, 1], np.eye(3), "nan"),
        ([0, 0, 5], [1, 0, 1], np.eye(3), "size"),
        ([0, 0, 5], [1, 1, 1], np.diag([1, 1, -1]), "rotation"),
        ([0, 0, 5], [1, 1, 1], 2 * np.eye(3), "rotation"),
    ],
)
def test_valid_box(center, size, rotation, fault):
    assert geometry.valid_box(Box3D(np.array(center, float), np.array(size, float), rotation)) == fault


def test_bbox_iou():
    a = np.array([0, 0, 2, 2.0])
    assert geometry.bbox_iou(a, np.array([1, 1, 3, 3.0])) == pytest.approx(1 / 7)
    assert geometry.bbox_iou(a, np.array([2, 2, 3, 3.0])) == 0


def test_scene_json_round_trip():
    box = Box3D(np.array([1.25, 2, 3]), np.array([4, 5, 6.5]), Rotation.random(random_state=1).as_matrix())
    item = Object3D("car", "red car", box, np.array([1, 2, 3, 4.5]), True, 0.5, 0.25, {"colour": "red"})
    scene = Scene(SceneImage("k"), Camera(9, 8, K, np.array([0, 1.0, 0])), (item,), False, "s", "indoor", ("dog",))
    back = scene_from_json(scene_to_json(scene), b"png")
    assert (back.image.id, back.image.encoded, back.metric, back.source, back.setting, back.hidden) == (
        "k", b"png", False, "s", "indoor", ("dog",))  # fmt: skip
    assert back.objects[0].phrase == "red car" and back.objects[0].attributes == {"colour": "red"}
    np.testing.assert_allclose(back.objects[0].box.rotation, box.rotation, atol=1e-5)
    assert back.objects[0].visibility == 0.5 and back.objects[0].truncation == 0.25
    assert (back.shared_scale, back.upright) == (True, True)
    bare = dataclasses.replace(scene, shared_scale=False, upright=False, camera=Camera(9, 8, K))
    back = scene_from_json(scene_to_json(bare))
    assert (back.shared_scale, back.upright, back.camera.gravity) == (False, False, None)
    with pytest.raises(UserError, match="scene JSON"):
        scene_from_json('{"image_id": "k"}')
