"""Back-projection, outliers, gravity and boxes against closed forms."""

import numpy as np
import pytest

from spatialllm_jax.scene.geometry import rotation_y, viewpoint
from spatialllm_jax.sources.pseudo_labels import boxes, points, views
from spatialllm_jax.sources.pseudo_labels.gravity import fit_plane, ground_plane
from spatialllm_jax.sources.pseudo_labels.interfaces import Orientation
from tests.pseudo_labels import world


def test_points_lie_where_the_pinhole_says():
    depth = np.zeros((120, 160))
    depth[20, 130], depth[100, 10] = 4.0, 2.0
    found = points.points_at(np.array([[20, 130], [100, 10]]), depth, world.INTRINSICS)
    expected = [[4 * (130.5 - 80) / 150, 4 * (20.5 - 60) / 150, 4.0],
                [2 * (10.5 - 80) / 150, 2 * (100.5 - 60) / 150, 2.0]]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_points_of_a_plane_have_the_depth_of_the_plane():
    """n·x = d for every back-projected pixel of a tilted floor."""
    down = world.tilted_down(25)
    depth, owner = world.see([], down, 1.5)
    cloud = points.points_at(np.argwhere(owner == -1), depth, world.INTRINSICS)
    np.testing.assert_allclose(cloud @ down, 1.5, atol=1e-9)


def brute_dbscan(cloud, radius, neighbours):
    """The definition, by repeated reachability over the full distance matrix."""
    near = np.linalg.norm(cloud[:, None] - cloud[None], axis=-1) <= radius
    core = near.sum(axis=1) >= neighbours
    label = np.full(len(cloud), -1)
    for k in np.flatnonzero(core):
        if label[k] < 0:
            group = np.zeros(len(cloud), bool)
            group[k] = True
            while True:
                more = group | (near[group & core].any(axis=0) & core)
                if (more == group).all():
                    break
                group = more
            label[group] = label.max() + 1
    return core, label, near


@pytest.mark.parametrize("radius, neighbours, groups", [(0.15, 5, 2), (0.3, 3, 1), (0.5, 1, 2), (0.25, 10, 1)])
def test_dbscan_is_its_definition(radius, neighbours, groups):
    rng = np.random.default_rng(3)
    cloud = np.concatenate([rng.normal(0, 0.1, (60, 3)), rng.normal(1.0, 0.15, (40, 3)), rng.uniform(-3, 3, (25, 3))])
    found = points.dbscan(cloud, radius, neighbours)
    core, label, near = brute_dbscan(cloud, radius, neighbours)
    same = found[core][:, None] == found[core][None]
    np.testing.assert_array_equal(same, label[core][:, None] == label[core][None])
    assert (found[core] >= 0).all()
    for k in np.flatnonzero(~core):
        reached = near[k] & core
        assert (found[k] in found[reached]) if reached.any() else found[k] == -1
    sizes = np.bincount(found[found >= 0])
    assert len(sizes) >= groups and (np.diff(sizes) <= 0).all()


def test_background_that_bled_into_a_mask_is_no_part_of_the_object():
    rng = np.random.default_rng(0)
    cloud = rng.uniform(-0.5, 0.5, (360, 3))
    cloud[:300, 2] += 3
    cloud[300:, 2] += 9
    kept = points.main_cluster(cloud, 0.2, 10)
    assert kept[:300].mean() > 0.95 and not kept[300:].any()
    assert not points.main_cluster(cloud[:1], 0.2, 10).any()


@pytest.mark.parametrize("tilt", [0.0, 12.0, 30.0])
def test_gravity_is_the_normal_of_the_floor(tilt):
    down = world.tilted_down(tilt)
    box = world.box_on_floor(0.3, 4.0, (1.0, 1.2, 0.8), 30, down, 1.6)
    depth, owner = world.see([box], down, 1.6)
    rng = np.random.default_rng(1)
    cloud = points.points_at(np.argwhere(owner >= -1), depth, world.INTRINSICS)     # the box too: outliers
    plane = ground_plane(cloud[rng.permutation(len(cloud))])
    assert np.degrees(np.arccos(min(float(-plane.normal @ down), 1.0))) < 0.2
    assert plane.height == pytest.approx(1.6, rel=5e-3) and plane.share > 0.5


def test_a_wall_is_no_floor_and_few_points_are_none():
    rng = np.random.default_rng(2)
    wall = np.stack([rng.uniform(-2, 2, 500), rng.uniform(-1, 1, 500), np.full(500, 4.0)], axis=1)
    assert ground_plane(wall) is None
    assert ground_plane(wall[:2]) is None
    assert ground_plane(np.zeros((50, 3))) is None
    ceiling = np.stack([rng.uniform(-2, 2, 500), np.full(500, -1.5), rng.uniform(2, 6, 500)], axis=1)
    assert ground_plane(ceiling) is None      # its normal points down at the camera


def test_least_squares_plane():
    rng = np.random.default_rng(4)
    normal = np.array([0.1, -0.95, -0.2])
    normal /= np.linalg.norm(normal)
    axes = np.linalg.svd(normal[None])[2][1:]
    found, offset = fit_plane(rng.normal(size=(100, 2)) @ axes - 1.7 * normal)
    np.testing.assert_allclose(found, normal, atol=1e-9)
    assert offset == pytest.approx(1.7)


@pytest.mark.parametrize("heading", [10.0, 77.0, 140.0])
def test_the_smallest_rectangle_is_the_footprint(heading):
    down = world.tilted_down(18)
    box = world.box_on_floor(0.0, 5.0, (2.0, 1.0, 0.6), heading, down, 1.5)
    rng = np.random.default_rng(5)
    cloud = box.center + (rng.uniform(-0.5, 0.5, (4000, 3)) * box.size) @ box.rotation.T
    rotation = boxes.rectangle_rotation(cloud, down)
    assert abs(float(rotation[:, 0] @ box.rotation[:, 0])) > np.cos(np.radians(2.0))    # the longer side, either way
    np.testing.assert_allclose(rotation[:, 1], down, atol=1e-9)
    assert np.linalg.det(rotation) == pytest.approx(1)
    low, high = boxes.seen_extents(cloud, rotation, 0.0)
    np.testing.assert_allclose(high - low, box.size, rtol=0.05)


def test_points_on_a_line_have_a_rectangle_too():
    line = np.linspace([-1, 0, 4], [1, 0, 5], 30)
    rotation = boxes.rectangle_rotation(line, np.array([0.0, 1.0, 0.0]))
    along = np.array([2, 0, 1]) / np.sqrt(5)
    assert abs(float(rotation[:, 0] @ along)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("upright", [True, False])
def test_a_viewpoint_gives_its_rotation_back(upright):
    down = world.tilted_down(20)
    box = world.box_on_floor(1.0, 4.0, (1, 1, 1), 200, down, 1.4)
    found = boxes.rotation_of(Orientation(*viewpoint(box), 1.0), box.center, down if upright else None)
    np.testing.assert_allclose(found, box.rotation, atol=1e-9)


def test_an_estimate_that_leans_is_set_upright():
    down = np.array([0.0, 1.0, 0.0])
    leaning = Orientation(40.0, 12.0, 9.0, 1.0)
    found = boxes.rotation_of(leaning, np.array([0.0, 0.0, 5.0]), down)
    np.testing.assert_allclose(found[:, 1], down, atol=1e-12)
    free = boxes.rotation_of(leaning, np.array([0.0, 0.0, 5.0]), None)
    level = free[:, 0] - (free[:, 0] @ down) * down
    np.testing.assert_allclose(found[:, 0], level / np.linalg.norm(level), atol=1e-12)


def fitted(box, others, down, floor, hidden=4.0, largest=None):
    depth, owner = world.see([box, *others], down, floor)
    seen = views.look_at(0, owner, depth, world.INTRINSICS)
    cloud = points.points_at(np.argwhere(owner == 0), depth, world.INTRINSICS)
    footprint = float(np.median(cloud[:, 2])) / world.FOCAL
    return boxes.fit_box(cloud, box.rotation, seen.rays, trim=0.0, hidden=hidden, standing=True, footprint=footprint,
                         largest=largest), seen


def faces(box, rotation):
    middle = box.center @ rotation
    return middle - box.size / 2, middle + box.size / 2


@pytest.mark.parametrize("heading", [0.0, 35.0, 90.0, 160.0, 250.0])
@pytest.mark.parametrize("tilt", [5.0, 28.0])
def test_the_true_faces_lie_between_seen_and_possible(heading, tilt):
    down = world.tilted_down(tilt)
    box = world.box_on_floor(0.4, 4.0, (1.8, 0.9, 0.7), heading, down, 1.5)
    fit, seen = fitted(box, [], down, 1.5)
    low, high = faces(box, box.rotation)
    found_low, found_high = faces(fit.box, box.rotation)
    assert (low >= found_low - fit.low - 1e-6).all() and (high <= found_high + fit.high + 1e-6).all()
    assert (found_low >= low - 1e-6).all() and (found_high <= high + 1e-6).all()      # surfaces are inside the box
    assert seen.visibility == 1.0 and not seen.cut


def test_a_box_seen_from_above_and_aside_is_known_to_a_pixel():
    """Three of its faces are seen whole, and their outline leaves no room behind."""
    down = world.tilted_down(40)
    box = world.box_on_floor(0.0, 2.6, (1.0, 0.6, 0.8), 40, down, 2.4)
    fit, _ = fitted(box, [], down, 2.4)
    pixel = 3.6 / world.FOCAL
    np.testing.assert_allclose(fit.box.center, box.center, atol=2 * pixel)
    np.testing.assert_allclose(fit.box.size, box.size, atol=3 * pixel)


def test_what_a_level_view_hides_stays_open_until_a_size_is_known():
    """From the front, nothing tells how long a bus is."""
    down = np.array([0.0, 1.0, 0.0])
    box = world.box_on_floor(0.0, 9.0, (8.0, 2.6, 2.4), 270, down, 1.3)      # the front faces the camera
    fit, _ = fitted(box, [], down, 1.3)
    assert fit.box.size[0] < 0.1 and fit.low[0] > 7.0 and fit.high[0] < 0.2
    bounded, _ = fitted(box, [], down, 1.3, largest=np.array([9.0, 3.0, 2.6]))
    assert 7.9 <= bounded.low[0] <= 9.0
    stingy, _ = fitted(box, [], down, 1.3, hidden=0.5)
    assert stingy.low[0] == pytest.approx(0.5 * box.size[1], rel=0.05)


def test_what_hides_an_object_leaves_room_for_it():
    down = world.tilted_down(8)
    behind = world.box_on_floor(0.0, 6.0, (1.0, 1.0, 2.0), 270, down, 1.5)
    before = world.box_on_floor(1.0, 4.0, (0.5, 0.8, 1.0), 270, down, 1.5)
    fit, seen = fitted(behind, [before], down, 1.5)
    alone, _ = fitted(behind, [], down, 1.5)
    low, high = faces(behind, behind.rotation)
    found_low, found_high = faces(fit.box, behind.rotation)
    assert seen.rays.behind.any() and 0.3 < seen.visibility < 1.0
    assert (low >= found_low - fit.low - 1e-6).all() and (high <= found_high + fit.high + 1e-6).all()
    assert max(fit.low[2], fit.high[2]) > 2 * max(alone.low[2], alone.high[2])
    # What is behind hides nothing.
    _, front = fitted(before, [behind], down, 1.5)
    assert not front.rays.behind.any() and front.visibility == 1.0


def test_an_edge_that_cuts_is_noticed():
    down = world.tilted_down(10)
    _, seen = fitted(world.box_on_floor(2.0, 3.5, (1.0, 1.0, 1.0), 20, down, 1.5), [], down, 1.5)
    assert seen.cut


def test_each_pixel_belongs_to_the_smallest_mask():
    masks = np.zeros((2, 10, 10), bool)
    masks[0, 2:9, 2:9], masks[1, 4:6, 4:6] = True, True
    found = views.owners(masks)
    assert (found == 1).sum() == 4 and (found == 0).sum() == 45 and (found == -1).sum() == 51
    np.testing.assert_array_equal(views.mask_box(masks[1]), [4, 4, 6, 6])
    assert views.inner(masks[0], 1).sum() == 25 and views.inner(masks[1], 1).sum() == 4


def test_upright_rotation_is_shared_with_the_sources():
    """`rotation_y` is what all other sources use: front, down, left, right-handed."""
    rotation = rotation_y(np.array([0.0, 0.3, -1.0]), np.array([0.0, -1.0, 0.0]))
    np.testing.assert_allclose(rotation, [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], atol=1e-12)
