"""Uncertain boxes: the bounds against sampling, the predicates, JSON."""

import dataclasses
import json

import numpy as np
import pytest

from spatialllm_jax.errors import UserError
from spatialllm_jax.questions import probing
from spatialllm_jax.questions.build import generate_questions, question_rng
from spatialllm_jax.questions.config import QuestionConfig
from spatialllm_jax.scene import geometry, relations, view_relations
from spatialllm_jax.scene.relations import Margins, scene_arrays
from spatialllm_jax.scene.serialize import scene_from_json, scene_to_json
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage, Uncertainty
from spatialllm_jax.scene.uncertainty import scene_errors

DOWN = np.array([0.05, 0.98, 0.2]) / np.linalg.norm([0.05, 0.98, 0.2])
CAMERA = Camera(640, 480, np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]]), DOWN)


def thing(center, heading=(1.0, 0.0, 0.2), low=(0, 0, 0), high=(0, 0, 0), turn=0.0, size=(0, 0, 0)):
    box = Box3D(np.array(center, float), np.array([1.0, 0.8, 0.6]), geometry.rotation_y(np.array(heading), -DOWN))
    unsure = Uncertainty(np.array([low, high], float), np.array(size, float), turn)
    return Object3D("car", "car", box, np.array([10.0, 10, 100, 100]), True, uncertainty=unsure)


def scene(*objects, gravity_error=0.0):
    return Scene(SceneImage("s"), dataclasses.replace(CAMERA, gravity_error=gravity_error), objects, True, "test")


def test_no_estimate_no_errors_and_the_same_json():
    plain = scene(*(dataclasses.replace(o, uncertainty=None) for o in (thing((0, 1, 5)), thing((2, 1, 7)))))
    assert scene_errors(plain) is None and scene_arrays(plain).errors is None
    assert "uncertainty" not in scene_to_json(plain) and "gravity_error" not in scene_to_json(plain)


def test_bounds_hold_wherever_the_boxes_are():
    """Every quantity of scenes whose boxes are moved and turned within their sets lies within the bounds."""
    rng = np.random.default_rng(0)
    objects = (thing((-0.5, 1, 5), (1, 0, 0.3), (0.3, 0.02, 0.9), (0.1, 0.05, 0.2), 6.0),
               thing((1.5, 0.7, 6), (-0.4, 0, 1), (0.0, 0.1, 0.1), (1.2, 0.0, 0.1), 3.0),
               thing((0.2, 0.9, 9), (0.1, 0, -1), (0.5, 0.2, 0.5), (0.5, 0.2, 0.5)))
    nominal = scene(*objects)
    arrays, errors = scene_arrays(nominal), scene_errors(nominal)
    worst = 0.0
    for _ in range(300):
        moved = []
        for o in objects:
            corner = np.where(rng.random(3) < 0.5, 0.0, 1.0) if rng.random() < 0.7 else rng.random(3)
            shift = -o.uncertainty.center[0] + corner * o.uncertainty.center.sum(axis=0)
            angle = np.radians(o.uncertainty.turn) * rng.choice([-1.0, 1.0, rng.uniform(-1, 1)])
            spin = np.cos(angle) * o.box.rotation[:, 0] + np.sin(angle) * o.box.rotation[:, 2]
            moved.append(dataclasses.replace(o, uncertainty=None, box=Box3D(
                o.box.center + o.box.rotation @ shift, o.box.size, geometry.rotation_y(spin, -DOWN))))
        other = scene_arrays(scene(*moved))
        for i in range(3):
            places = [*range(3), 3]
            for j in places:
                if i == j:
                    continue
                column = -1 if j == 3 else j
                distance = other.distance[i] if j == 3 else other.between[i][j]
                assert errors.nearest[i][column] - 1e-9 <= distance <= errors.farthest[i][column] + 1e-9
                turned = abs((other.bearing[i][column] - arrays.bearing[i][column] + 180) % 360 - 180)
                assert turned <= errors.bearing[i][column] + 1e-6
                raised = abs(other.elevation[i][column] - arrays.elevation[i][column])
                assert raised <= errors.elevation[i][column] + 1e-6
                if j == 1 and i == 0:
                    worst = max(worst, turned / errors.bearing[i][column])
                if j < 3:
                    rise = (other.height[i] - other.height[j]) - (arrays.height[i] - arrays.height[j])
                    assert abs(rise) <= errors.rise[i][j] + 1e-9
    assert worst > 0.6      # bounds that are reached, or nearly


def test_a_tilted_vertical_moves_heights_by_no_more_than_said():
    objects = (thing((-2.0, 1, 4)), thing((2.0, 0.5, 8)))
    nominal = scene(*objects, gravity_error=5.0)
    arrays, errors = scene_arrays(nominal), scene_errors(nominal)
    rng = np.random.default_rng(1)
    for _ in range(100):
        side = np.cross(DOWN, rng.normal(size=3))
        side /= np.linalg.norm(side)
        tilted = np.cos(np.radians(5)) * DOWN + np.sin(np.radians(5)) * side
        other = scene_arrays(dataclasses.replace(nominal, camera=Camera(640, 480, CAMERA.intrinsics, tilted)))
        rise = (other.height[0] - other.height[1]) - (arrays.height[0] - arrays.height[1])
        # Tilting also shortens the height itself a little (1 - cos 5°).
        assert abs(rise) <= errors.rise[0][1] + 0.004 * abs(arrays.height[0] - arrays.height[1]) + 1e-9


@pytest.mark.parametrize("spread, asked", [(0.0, True), (0.2, True), (1.0, False), (2.0, False)])
def test_closer_is_asked_only_if_it_holds_everywhere(spread, asked):
    first, second = thing((0, 0, 5)), thing((0, 0, 6.5))
    # Along the ray whatever the axes: the same reach on all of them, over the square root of three.
    reach = Uncertainty(np.full((2, 3), spread / np.sqrt(3)), np.zeros(3), 0.0)
    unsure = scene(dataclasses.replace(first, uncertainty=reach), second)
    verdict = relations.closer_to_camera(scene_arrays(unsure), 0, 1, Margins())
    assert (verdict is not None) == asked
    if asked:
        assert verdict.answer == "first"


def test_every_predicate_is_silent_when_nothing_is_known():
    lost = tuple([50.0] * 3)
    objects = [thing(c, h, lost, lost, 180.0, lost) for c, h in (
        ((0, 1, 5), (0, 0, -1)), ((3, 1, 5), (0, 0, -1)), ((0, -2, 9), (1, 0, 0)))]
    sure = scene(*(dataclasses.replace(o, uncertainty=None) for o in objects))
    a, b, m, seen = scene_arrays(scene(*objects)), scene_arrays(sure), Margins(), view_relations.ViewMargins()
    va, vb = view_relations.view_arrays(scene(*objects)), view_relations.view_arrays(sure)
    cases = [(relations.closer_to_camera, (0, 2)), (relations.closer_to_object, (0, 1, 2)),
             (relations.facing_camera, (0,)), (relations.same_direction, (0, 1)), (relations.higher, (0, 2)),
             (relations.on_which_side, (0, 1))]
    for judge, case in cases:
        assert judge(b, *case, m) is not None and judge(a, *case, m) is None, judge
    for judge, case in ((view_relations.left_right, (0, 1)), (view_relations.front_behind, (0, 2)),
                        (view_relations.above_below, (0, 2))):
        assert judge(vb, *case, seen) is not None and judge(va, *case, seen) is None, judge


def test_facing_an_object_needs_both_angles():
    anchor, near, far = thing((0, 1, 6), (1, 0, 0)), thing((3, 1, 6)), thing((0, 1, 12))
    told = scene_arrays(scene(anchor, near, far))
    assert relations.facing_object(told, 0, 1, 2, Margins()).answer == "first"
    turned = scene_arrays(scene(thing((0, 1, 6), (1, 0, 0), turn=32.0), near, far))
    assert relations.facing_object(turned, 0, 1, 2, Margins()) is None


def test_numbers_are_said_only_if_known():
    config = QuestionConfig("p", {"depth": 3, "distance": 3, "azimuth": 3, "elevation": 3})
    sure = scene(thing((0, 1, 5)), thing((3, 1, 7)))
    assert {q.type for q in generate_questions(sure, config, question_rng(0, 0))} == {
        "depth", "distance", "azimuth", "elevation"}
    wide = tuple([3.0] * 3)
    unsure = scene(*(thing(c, low=wide, high=wide, turn=40.0) for c in ((0, 1, 5), (3, 1, 7))))
    assert generate_questions(unsure, config, question_rng(0, 0)) == []
    assert probing.angle_sure(scene_arrays(unsure), 0, 45.0)


def test_json_keeps_what_is_uncertain():
    unsure = thing((0, 1, 5), low=(0.1, 0.2, 0.3), high=(0.4, 0.5, 0.6), turn=7.0, size=(1, 2, 3))
    first = scene(unsure, gravity_error=3)
    again = scene_from_json(scene_to_json(first))
    kept = again.objects[0].uncertainty
    np.testing.assert_allclose(kept.center, [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    np.testing.assert_allclose(kept.size, [1, 2, 3])
    assert kept.turn == 7.0 and kept.confidence == 1.0 and again.camera.gravity_error == 3.0
    assert json.loads(scene_to_json(again)) == json.loads(scene_to_json(first))


@pytest.mark.parametrize("change", [{"center": [1, 2]}, {"size": [-1, 0, 0]}, {"turn": None}, {"turn": float("nan")},
                                    {"turn": -5}, {"confidence": float("inf")}])
def test_an_uncertainty_that_cannot_be_is_told(change):
    data = json.loads(scene_to_json(scene(thing((0, 1, 5)))))
    data["objects"][0]["uncertainty"].update(change)
    with pytest.raises(UserError, match="scene JSON"):
        scene_from_json(json.dumps(data))


@pytest.mark.parametrize("error", [-3, float("nan"), None])
def test_a_gravity_error_that_cannot_be_is_told(error):
    data = json.loads(scene_to_json(scene(thing((0, 1, 5)))))
    data["camera"]["gravity_error"] = error
    with pytest.raises(UserError, match="scene JSON"):
        scene_from_json(json.dumps(data))


def test_a_vertical_that_may_be_anything_tells_no_heights():
    """Beyond a right angle the sine falls again; what may be off does not."""
    objects = (thing((0, 1, 5)), thing((0, -2, 5)))
    assert view_relations.above_below(view_relations.view_arrays(scene(*objects)), 0, 1, view_relations.ViewMargins())
    lost = scene(*objects, gravity_error=180.0)
    seen = view_relations.view_arrays(lost)
    np.testing.assert_allclose(np.array(seen.errors)[:, 1], seen.distance)
    assert dataclasses.asdict(view_relations.view_arrays(lost, scene_arrays(lost))) == dataclasses.asdict(seen)
