"""The measured error: counts by hand, and the three ways on rendered scenes."""

import dataclasses

import numpy as np
import pytest

from launch import pseudo_error
from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import rotation_y
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage
from spatialllm_jax.sources.pseudo_labels.camera import DepthCalibrator
from spatialllm_jax.sources.pseudo_labels.config import PseudoLabelConfig
from spatialllm_jax.sources.pseudo_labels.error import TYPES, Tally, compare, matched, without_judging
from spatialllm_jax.sources.pseudo_labels.truth import Noise, Truth
from spatialllm_jax.sources.rendered.config import RenderConfig
from spatialllm_jax.sources.rendered.source import render

UP = np.array([0.0, -1.0, 0.0])


def thing(name, center, box2d, heading=(0.0, 0.0, -1.0)):
    box = Box3D(np.array(center, float), np.ones(3), rotation_y(np.array(heading), UP))
    return Object3D(name, name, box, np.array(box2d, float), True)


def scene(*objects):
    camera = Camera(200, 200, np.array([[200.0, 0, 100], [0, 200, 100], [0, 0, 1]]), -UP)
    return Scene(SceneImage("s"), camera, objects, True, "t")


TRUTH = scene(thing("car", (0, 0, 5), (80, 80, 120, 120)), thing("bus", (2, 0, 9), (120, 80, 160, 120)))


def test_a_flip_is_an_answer_that_the_truth_denies():
    swapped = scene(thing("car", (0, 0, 9), (80, 80, 120, 120)), thing("bus", (2, 0, 5), (120, 80, 160, 120)))
    tally = Tally()
    compare(swapped, TRUTH, tally)
    assert (tally.clear["closer_to_camera"], tally.asked["closer_to_camera"], tally.flipped["closer_to_camera"]) == (
        1, 1, 1)
    assert tally.flipped["view_front_behind"] == 1 and tally.flipped["depth"] == 2
    same = Tally()
    compare(TRUTH, TRUTH, same)
    assert same.flipped.total() == same.vague.total() == 0 and same.objects == same.found == 2
    assert all(same.lost[kind] == 0 for kind in TYPES)


def test_what_is_not_found_is_lost_not_flipped():
    tally = Tally()
    compare(None, TRUTH, tally)
    assert tally.found == 0 and tally.flipped.total() == 0
    assert tally.lost["closer_to_camera"] == tally.clear["closer_to_camera"] == 1 and tally.lost["depth"] == 2


def test_an_answer_the_truth_would_not_ask_is_vague():
    near = scene(*TRUTH.objects[:1], thing("bus", (0.5, 0, 5.1), (120, 80, 160, 120)))
    tally = Tally()
    compare(TRUTH, near, tally)
    assert tally.vague["closer_to_camera"] == 1 and tally.flipped["closer_to_camera"] == 0


def test_objects_are_matched_by_name_and_place():
    guess = scene(thing("bus", (0, 0, 5), (82, 80, 121, 122)), thing("car", (0, 0, 5), (84, 80, 121, 122)))
    assert matched(guess, TRUTH) == [(1, 0)]


def test_an_object_that_the_edge_cuts_is_not_asked_about():
    cut = scene(*(dataclasses.replace(o, truncation=0.5) for o in TRUTH.objects))
    tally = Tally()
    compare(cut, TRUTH, tally)
    assert tally.asked.total() == 0 and tally.found == 2


@pytest.fixture(scope="module")
def measured():
    pytest.importorskip("moderngl", reason="scenes are rendered")
    return pseudo_error.main(["--scenes", "6", "--seed", "3", "--workers", "1", "--random-models", "0", "--image-size",
                              "160", "--levels", "true;all, mild;orientation 30"])["levels"]


def test_with_the_truth_no_answer_flips(measured):
    true = measured["true | judged"]
    assert true["found"] == true["objects"] > 0
    assert sum(t["flipped"] for t in true["types"].values()) == 0
    asked = sum(t["asked"] for t in true["types"].values())
    assert asked > 0.4 * sum(t["clear"] for t in true["types"].values())


def test_noise_flips_answers_and_judging_drops_them(measured):
    loose, judged = measured["orientation 30 | unjudged"]["types"], measured["orientation 30 | judged"]["types"]
    assert loose["azimuth"]["flipped"] > 0
    assert judged["azimuth"]["flipped"] == 0 and judged["azimuth"]["asked"] == 0
    assert measured["true | unjudged"]["types"]["azimuth"]["flipped"] == 0


def test_gravity_is_found_in_the_depth_of_rendered_rooms_and_streets():
    pytest.importorskip("moderngl", reason="scenes are rendered")
    for index in range(10):
        rendered = render(RenderConfig(image_size=128), 4, index)
        truth = Truth(rendered, Noise(), 0)
        masks = np.stack([rendered.instances == k + 1 for k in range(len(rendered.scene.objects))])
        picture = np.zeros((128, 128, 3), np.uint8)
        found = DepthCalibrator(PseudoLabelConfig()).calibrate(picture, truth.depth(picture), masks)
        off = np.degrees(np.arccos(np.clip(found.gravity @ rendered.scene.camera.gravity, -1, 1)))
        assert off < 1.5 and found.gravity_error == 3.0, index
        np.testing.assert_allclose(found.intrinsics, rendered.scene.camera.intrinsics, atol=1e-9)


def test_random_models_take_the_same_path(tmp_path, monkeypatch):
    pytest.importorskip("moderngl", reason="scenes are rendered")
    pytest.importorskip("torch", reason="the models are torch's: pip install torch")
    found = pseudo_error.main(["--scenes", "1", "--workers", "1", "--random-models", "1", "--image-size", "96",
                               "--levels", "true", "--plot", str(tmp_path / "plot.png")])["levels"]
    floor = found["random models | default"]
    assert floor["objects"] > 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("flags, said", [
    (["--levels", "awful"], "--levels 'awful'"), (["--seed", "-1"], "--seed not negative"),
    (["--plot", "plot.doc"], "FILE.png or FILE.svg"), (["--plot", "."], "is a folder")])
def test_mistakes_are_told_before_the_work(flags, said):
    with pytest.raises(UserError, match=said):
        pseudo_error.main(flags)
    assert without_judging(TRUTH).objects[0].uncertainty is None
