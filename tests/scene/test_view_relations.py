"""Left or right, above or below, in front or behind for the viewer: axes, margins and what looks odd."""

import dataclasses

import numpy as np
import pytest

from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage
from spatialllm_jax.scene.view_relations import ViewMargins, above_below, front_behind, left_right, view_arrays

K = np.array([[200.0, 0, 112], [0, 200, 112], [0, 0, 1]])
DOWN = np.array([0.0, 1.0, 0.0])


def scene(*places, sizes=None, gravity=DOWN, **kwargs):
    """Boxes of 0.4 m at these places, camera frame."""
    objects = tuple(
        Object3D("box", "box", Box3D(np.array(place, float), np.array(size, float), np.eye(3)), np.zeros(4), True)
        for place, size in zip(places, sizes or [(0.4, 0.4, 0.4)] * len(places), strict=True)
    )
    return Scene(SceneImage("s"), Camera(224, 224, K, gravity), objects, kwargs.pop("metric", True), "t", **kwargs)


def ask(judge, *args, **kwargs):
    verdict = judge(view_arrays(scene(*args, **kwargs)), 0, 1, ViewMargins())
    return None if verdict is None else verdict.answer


@pytest.mark.parametrize(
    ("judge", "first", "second", "answer", "opposite"),
    [(left_right, (-1, 0, 5), (1, 0, 5), "left", "right"), (above_below, (0, -1, 5), (0, 1, 5), "above", "below"),
     (front_behind, (0, 0, 4), (0, 0, 6), "front", "behind")],
)  # fmt: skip
def test_each_axis(judge, first, second, answer, opposite):
    assert ask(judge, first, second) == answer and ask(judge, second, first) == opposite
    verdict = judge(view_arrays(scene(first, second)), 0, 1, ViewMargins())
    assert verdict.margin == pytest.approx(2) and len(verdict.quantities) == 2


def test_axes_are_level_when_the_camera_looks_down():
    """A camera pitched by 40 degrees: what is straight ahead on its axis is lower and farther."""
    pitch = np.radians(40)
    gravity = np.array([0, np.cos(pitch), np.sin(pitch)])
    arrays = view_arrays(scene((0, 0, 5), (1, 0, 5), gravity=gravity))
    np.testing.assert_allclose(arrays.up, -5 * np.sin(pitch), atol=1e-9)
    np.testing.assert_allclose(arrays.forward, 5 * np.cos(pitch), atol=1e-9)
    np.testing.assert_allclose(arrays.right, [0, 1], atol=1e-9)
    assert (arrays.roll, arrays.pitch) == (pytest.approx(0), pytest.approx(40))
    # On the floor one behind the other, seen from above: the far one is higher in the picture, not in the world.
    ahead, floor = np.array([0, -np.sin(pitch), np.cos(pitch)]), 1.5 * gravity
    near, far = floor + 3 * ahead, floor + 6 * ahead
    assert ask(above_below, near, far, gravity=gravity) is None
    assert ask(front_behind, near, far, gravity=gravity) == "front"


def test_gaps():
    assert ask(left_right, (-0.14, 0, 3), (0.14, 0, 3)) is None  # 0.28 m
    assert ask(left_right, (-0.16, 0, 3), (0.16, 0, 3)) == "left"
    assert ask(left_right, (-0.14, 0, 3), (0.14, 0, 3), metric=False) == "left"  # no metres: the share alone
    wide = [(0.4, 0.4, 0.4), (0.4, 0.4, 0.4)]
    assert ask(left_right, (-0.3, 0, 5), (0.3, 0, 5), sizes=wide) == "left"
    long = [(3, 0.4, 0.4), (3, 0.4, 0.4)]
    assert ask(left_right, (-0.3, 0, 5), (0.3, 0, 5), sizes=long) is None  # less than 25 % of 3 m
    assert ask(left_right, (-0.5, 0, 5), (0.5, 0, 5), sizes=long) == "left"


def test_a_box_that_encloses_the_other_is_not_asked_about():
    """A post beside the middle of a long bus is neither in front of it nor behind it."""
    sizes = [(0.4, 0.4, 0.4), (0.4, 0.4, 8)]
    assert ask(front_behind, (2, 0, 8), (0, 0, 10.5), sizes=sizes) is None
    assert ask(front_behind, (2, 0, 6), (0, 0, 10.5), sizes=sizes) == "front"


def test_the_picture_must_agree():
    # 1 m to the left in space, but seen further right since it is so near.
    assert ask(left_right, (1, 0, 2), (2, 0, 20)) is None
    # Higher by 1 m, but below the other one in the picture, since it is near and under the horizon.
    assert ask(above_below, (0, 1, 2), (0, 2, 20)) is None
    # Nearer along the axis, but farther from the viewer.
    assert ask(front_behind, (9, 0, 4), (0, 0, 6)) is None


def test_what_a_scene_does_not_allow():
    above, below = (0, -1, 5), (0, 1, 5)
    assert ask(above_below, above, below, gravity=None) == "above"  # the boxes' own up stands in
    assert ask(above_below, above, below, gravity=None, upright=False) is None
    assert ask(left_right, (-1, 0, 5), (1, 0, 5), gravity=None, upright=False) == "left"
    assert ask(left_right, (-1, 0, 5), (1, 0, 5), shared_scale=False) is None
    tilted = np.array([np.sin(np.radians(35)), np.cos(np.radians(35)), 0])
    assert ask(left_right, (-1, 0, 5), (1, 0, 5), gravity=tilted) is None  # the camera is on its side
    steep = np.array([0, np.cos(np.radians(70)), np.sin(np.radians(70))])
    assert ask(front_behind, (0, 1, 4.5), (0, -1, 5.2), gravity=steep) is None  # seen from above
    less = np.array([0, np.cos(np.radians(50)), np.sin(np.radians(50))])
    assert ask(front_behind, (0, 1, 4.5), (0, -1, 5.2), gravity=less) == "front"


def test_margins_are_fields():
    arrays = view_arrays(scene((-1, 0, 5), (1, 0, 5)))
    for field, value in (("gap", 3.0), ("ratio", 6.0), ("seen_degrees", 40.0)):
        assert left_right(arrays, 0, 1, dataclasses.replace(ViewMargins(), **{field: value})) is None, field
    assert view_arrays(scene()).right == []
