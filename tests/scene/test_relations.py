"""The seven predicates on hand-made scenes with known answers, and by property."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from spatialllm_jax.scene import relations
from spatialllm_jax.scene.geometry import rotation_y
from spatialllm_jax.scene.relations import Margins, scene_arrays
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage

UP = np.array([0.0, -1.0, 0.0])
M = Margins()
AWAY, TOWARDS, LEFT, RIGHT = (0, 0, 1.0), (0, 0, -1.0), (-1.0, 0, 0), (1.0, 0, 0)


def item(x, y, z, front=TOWARDS, has_front=True, size=(1.0, 1.0, 1.0)):
    box = Box3D(np.array([x, y, z], float), np.array(size, float), rotation_y(np.array(front, float), UP))
    return Object3D("thing", "thing", box, np.array([0, 0, 50, 50.0]), has_front)


def scene(*objects, metric=True, gravity=(0, 1.0, 0), **flags):
    down = None if gravity is None else np.array(gravity)
    camera = Camera(100, 100, np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]), down)
    return scene_arrays(Scene(SceneImage("s"), camera, objects, metric, "test", **flags))


def answer(verdict):
    return None if verdict is None else verdict.answer


def test_closer_to_camera():
    arrays = scene(item(0, 0, 4), item(3, 0, 4), item(0, 0, 4.2), item(0.1, 0, 1.5))
    assert relations.closer_to_camera(arrays, 0, 1, M) == relations.Verdict(
        "first", {"distance_first": 4.0, "distance_second": 5.0}, 1.0
    )
    assert answer(relations.closer_to_camera(arrays, 1, 0, M)) == "second"
    assert relations.closer_to_camera(arrays, 0, 2, M) is None  # 0.2 m, 5 %
    assert answer(relations.closer_to_camera(arrays, 0, 3, M)) == "second"
    # 15 % of the farther one, but less than 0.3 m; asked when the scene has no metres.
    near = (item(0, 0, 1.0), item(0, 0, 1.25))
    assert relations.closer_to_camera(scene(*near), 0, 1, M) is None
    assert answer(relations.closer_to_camera(scene(*near, metric=False), 0, 1, M)) == "first"


def test_closer_to_object():
    arrays = scene(item(0, 0, 5), item(1, 0, 5), item(-3, 0, 5), item(0, 0, 6.1))
    assert relations.closer_to_object(arrays, 0, 1, 2, M) == relations.Verdict(
        "first", {"distance_first": 1.0, "distance_second": 3.0}, 2.0
    )
    assert answer(relations.closer_to_object(arrays, 0, 2, 1, M)) == "second"
    assert relations.closer_to_object(arrays, 0, 1, 3, M) is None


@pytest.mark.parametrize(
    ("front", "side"), [(TOWARDS, "front"), (AWAY, "back"), (LEFT, "left"), (RIGHT, "right")]
)
def test_facing_camera(front, side):
    """A car that looks to the left of the image turns its own left side to the camera."""
    verdict = relations.facing_camera(scene(item(0, 0, 6, front)), 0, M)
    assert answer(verdict) == side and verdict.margin == pytest.approx(45)


def test_facing_camera_guard_bands():
    def at(degrees):
        a = np.radians(degrees)
        return relations.facing_camera(scene(item(0, 0, 6, (np.sin(a), 0, -np.cos(a)))), 0, M)

    assert answer(at(29)) == "front" and at(31) is None and at(59) is None and answer(at(61)) == "right"
    assert at(29).margin == pytest.approx(16)
    assert answer(relations.facing_camera(scene(item(0, 8, 2)), 0, M)) == "top"
    assert answer(relations.facing_camera(scene(item(0, -8, 2)), 0, M)) == "bottom"
    assert relations.facing_camera(scene(item(0, 3, 2)), 0, M) is None  # 56 degrees: neither
    assert relations.facing_camera(scene(item(0, 0, 6, has_front=False)), 0, M) is None


def test_facing_object():
    arrays = scene(item(0, 0, 5, RIGHT), item(3, 0, 5), item(-3, 0, 5), item(2.5, 0, 6.5))
    verdict = relations.facing_object(arrays, 0, 1, 2, M)
    assert answer(verdict) == "first" and verdict.quantities["angle_second"] == pytest.approx(180)
    assert answer(relations.facing_object(arrays, 0, 2, 1, M)) == "second"
    assert relations.facing_object(arrays, 0, 1, 3, M) is None  # both ahead
    frontless = scene(item(0, 0, 5, RIGHT, False), item(3, 0, 5), item(-3, 0, 5))
    assert relations.facing_object(frontless, 0, 1, 2, M) is None


def test_same_direction():
    def pair(degrees):
        a = np.radians(degrees)
        return relations.same_direction(
            scene(item(0, 0, 5, AWAY), item(2, 0, 5, (np.sin(a), 0, np.cos(a)))), 0, 1, M
        )

    assert answer(pair(10)) == "same" and answer(pair(180)) == "different" and answer(pair(95)) == "different"
    assert pair(45) is None and pair(80) is None
    assert pair(10).quantities["angle"] == pytest.approx(10, abs=1e-4)


def test_higher():
    arrays = scene(item(0, -1, 5), item(2, 1, 5), item(4, -1.2, 5), item(4, 0, 5, size=(1, 9, 1)))
    verdict = relations.higher(arrays, 0, 1, M)
    assert answer(verdict) == "first" and verdict.margin == pytest.approx(2)
    assert relations.higher(arrays, 0, 2, M) is None  # 0.2 m
    assert relations.higher(arrays, 0, 3, M) is None  # 1 m, but the taller one is 9 m tall


def test_height_follows_gravity_not_the_image():
    """A camera rolled by 90 degrees: image-right is up."""
    boxes = [item(3, 0, 5), item(-3, 0, 5)]
    arrays = scene(*boxes, gravity=(-1.0, 0, 0))
    assert answer(relations.higher(arrays, 0, 1, M)) == "first"


@pytest.mark.parametrize(
    ("front", "sides"),
    [(AWAY, ("front", "left", "back", "right")), (TOWARDS, ("back", "right", "front", "left")),
     (RIGHT, ("left", "back", "right", "front"))],
)  # fmt: skip
def test_on_which_side(front, sides):
    """Targets behind, image-left of, before and image-right of an anchor that turns about itself."""
    around = [item(0, 0, 9), item(-3, 0, 6), item(0, 0, 3), item(3, 0, 6)]
    arrays = scene(item(0, 0, 6, front), *around)
    assert tuple(answer(relations.on_which_side(arrays, 0, k, M)) for k in range(1, 5)) == sides


def test_on_which_side_is_not_asked_of_diagonals_or_things_above():
    arrays = scene(item(0, 0, 6), item(3, 0, 9), item(0.1, -4, 6))
    assert relations.on_which_side(arrays, 0, 1, M) is None
    assert relations.on_which_side(arrays, 0, 2, M) is None


def test_lying_object_has_no_horizontal_front():
    box = Box3D(np.array([0, 0, 5.0]), np.ones(3), np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]]))
    lying = Object3D("person", "person", box, np.array([0, 0, 9, 9.0]), True)
    assert relations.facing_camera(scene(lying), 0, M) is None


def test_empty_scene():
    assert scene().distance == []


def verdicts(built, count):
    """Every verdict of a scene, by type and objects."""
    found = {}
    for a in range(count):
        found["facing_camera", a] = relations.facing_camera(built, a, M)
        for b in range(count):
            if a != b:
                for kind in ("closer_to_camera", "same_direction", "higher", "on_which_side"):
                    found[kind, a, b] = getattr(relations, kind)(built, a, b, M)
                for c in range(count):
                    if c not in (a, b):
                        for kind in ("closer_to_object", "facing_object"):
                            found[kind, a, b, c] = getattr(relations, kind)(built, a, b, c, M)
    return found


def random_objects(seed, count=4):
    rng = np.random.default_rng(seed)
    return [
        item(*rng.uniform([-4, -2, 4], [4, 2, 12]), front=(*rng.normal(size=1), 0, *rng.normal(size=1)),
             size=rng.uniform(0.5, 2, 3))
        for _ in range(count)
    ]  # fmt: skip


def moved(objects, transform):
    return [
        dataclasses.replace(
            o, box=Box3D(transform @ o.box.center, o.box.size, transform @ o.box.rotation)
        )
        for o in objects
    ]


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.integers(0, 10_000))
def test_rotating_the_camera_changes_nothing(seed):
    """Gravity turns with the world, so that all seven types are answered in the same way."""
    objects, turn = random_objects(seed), Rotation.random(random_state=seed).as_matrix()
    before, after = scene(*objects), scene(*moved(objects, turn), gravity=turn @ [0, 1.0, 0])
    for key, verdict in verdicts(before, 4).items():
        other = verdicts(after, 4)[key]
        if verdict is None or other is None:
            assert near_a_margin(before, key) or verdict is other
        else:
            assert verdict.answer == other.answer and verdict.margin == pytest.approx(other.margin, abs=1e-3)


def near_a_margin(arrays, key):
    """Whether rounding may decide: the same question with margins moved a little has another outcome."""
    wider = Margins(**{f.name: getattr(M, f.name) * 1.0001 for f in dataclasses.fields(M)})
    tighter = Margins(**{f.name: getattr(M, f.name) * 0.9999 for f in dataclasses.fields(M)})
    kind, *indices = key
    judge = getattr(relations, kind)
    return (judge(arrays, *indices, wider) is None) != (judge(arrays, *indices, tighter) is None)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.integers(0, 10_000))
def test_mirroring_swaps_left_and_right(seed):
    """Mirrored at the plane x = 0: the object's own left becomes its right; all else stays."""
    objects = random_objects(seed)
    flip, own = np.diag([-1.0, 1, 1]), np.diag([1, 1, -1.0])
    mirrored = [
        dataclasses.replace(o, box=Box3D(flip @ o.box.center, o.box.size, flip @ o.box.rotation @ own))
        for o in objects
    ]
    swap = {"left": "right", "right": "left"}
    after = verdicts(scene(*mirrored), 4)
    for key, verdict in verdicts(scene(*objects), 4).items():
        expected = answer(verdict)
        if expected in swap:
            expected = swap[expected]
        assert answer(after[key]) == expected


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.integers(0, 10_000), st.floats(1.0, 20.0))
def test_scaling_the_world_keeps_orders(seed, factor):
    """A larger world: what was asked is still asked (gaps in metres only grow) and answered alike."""
    objects = random_objects(seed)
    larger = [
        dataclasses.replace(o, box=Box3D(o.box.center * factor, o.box.size * factor, o.box.rotation))
        for o in objects
    ]
    before, after = scene(*objects), verdicts(scene(*larger), 4)
    for key, verdict in verdicts(before, 4).items():
        if verdict is not None and not near_a_margin(before, key):
            assert after[key] is not None and after[key].answer == verdict.answer


# Types that are about objects alone, wherever the camera stands.
OWN = ("closer_to_object", "facing_object", "same_direction", "higher", "on_which_side")


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.integers(0, 10_000), st.booleans())
def test_moving_the_camera_keeps_what_is_about_objects(seed, known):
    """Any turn and shift of the camera, with gravity known or taken from upright objects."""
    rng = np.random.default_rng(seed)
    objects, turn, shift = random_objects(seed), Rotation.random(random_state=seed).as_matrix(), rng.normal(size=3) * 5
    elsewhere = [
        dataclasses.replace(o, box=dataclasses.replace(o.box, center=o.box.center + shift))
        for o in moved(objects, turn)
    ]
    before = scene(*objects, gravity=(0, 1.0, 0) if known else None)
    after = verdicts(scene(*elsewhere, gravity=turn @ [0, 1.0, 0] if known else None), 4)
    asked = {key: verdict for key, verdict in verdicts(before, 4).items() if key[0] in OWN}
    for key, verdict in asked.items():
        if not near_a_margin(before, key):
            assert answer(after[key]) == answer(verdict)
    assert any(verdict is not None for verdict in asked.values())


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(st.integers(0, 10_000))
def test_objects_without_a_shared_scale_are_not_compared(seed):
    """What is about one object, or about two directions, stays; the rest is never answered."""
    objects = random_objects(seed)
    apart = verdicts(scene(*objects, shared_scale=False), 4)
    for key, verdict in verdicts(scene(*objects), 4).items():
        if key[0] in ("facing_camera", "same_direction"):
            assert apart[key] == verdict
        else:
            assert apart[key] is None


def test_each_type_is_silenced_by_the_missing_scale():
    """On a scene where every type has an answer, so that silence comes from the flag alone."""
    objects = item(0, 0, 5, RIGHT), item(3, 0, 5, RIGHT), item(-3, -2, 9)
    calls = {
        "closer_to_camera": (0, 2), "closer_to_object": (0, 1, 2), "facing_camera": (0,), "facing_object": (0, 1, 2),
        "same_direction": (0, 1), "higher": (0, 2), "on_which_side": (0, 1),
    }  # fmt: skip
    for shared, upright, gravity, silent in (
        (True, True, UP, ()),
        (True, True, None, ()),
        (True, False, (0, 1.0, 0), ()),
        (False, True, None, ("closer_to_camera", "closer_to_object", "facing_object", "higher", "on_which_side")),
        (True, False, None, ("facing_camera", "facing_object", "same_direction", "higher", "on_which_side")),
        (False, False, None, tuple(calls)),
    ):
        built = scene(*objects, shared_scale=shared, upright=upright, gravity=gravity)
        found = {kind for kind, indices in calls.items() if getattr(relations, kind)(built, *indices, M) is None}
        assert found == set(silent)
        assert (built.shared_scale, built.vertical) == (shared, upright or gravity is not None)


def test_objects_that_disagree_on_up_tell_no_vertical():
    """Upright or not: three boxes lying on different sides leave no mean to trust."""
    boxes = [np.eye(3), np.diag([1.0, -1, -1]), np.array([[0, 1.0, 0], [-1, 0, 0], [0, 0, 1]])]
    lying = [
        dataclasses.replace(item(2.0 * k, 0, 6), box=Box3D(np.array([2.0 * k, 0, 6]), np.ones(3), rotation))
        for k, rotation in enumerate(boxes)
    ]
    built = scene(*lying, gravity=None)
    assert not built.vertical and not any(built.has_front)


def test_empty_scenes_keep_their_flags():
    assert scene(shared_scale=False).shared_scale is False and scene().vertical
    assert not scene(gravity=None).vertical
