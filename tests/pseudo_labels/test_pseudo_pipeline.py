"""The pipeline over a world in closed form: what is kept, what is dropped and why, what its boxes say."""

from collections import Counter

import numpy as np
import pytest

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.types import SceneImage
from spatialllm_jax.sources.pseudo_labels.camera import DepthCalibrator
from spatialllm_jax.sources.pseudo_labels.config import Filters, Judging, PseudoLabelConfig, pseudo_label_config
from spatialllm_jax.sources.pseudo_labels.interfaces import DepthMap, Detections, Orientation
from spatialllm_jax.sources.pseudo_labels.pipeline import believed, label
from tests.pseudo_labels import world

DOWN = world.tilted_down(20)
SURE = Judging(depth_error=0.0, orientation_error=0.0, mask_error=1.0, trim=0.0)


def two_boxes():
    return world.Oracle([world.box_on_floor(-0.6, 3.0, (0.8, 0.7, 0.5), 40, DOWN, 1.5),
                         world.box_on_floor(0.9, 4.5, (1.2, 0.9, 0.6), 130, DOWN, 1.5)], DOWN, 1.5, ("chair", "desk"))


def labelled(oracle, **kwargs):
    config = PseudoLabelConfig(judging=kwargs.pop("judging", SURE), **kwargs)
    return label(oracle.picture(), SceneImage("x"), oracle.estimators(), config)


def test_the_boxes_come_back():
    oracle = two_boxes()
    made = labelled(oracle)
    assert made.reason == "" and not made.left_out
    assert [o.category for o in made.scene.objects] == ["chair", "desk"]
    for found, true in zip(made.scene.objects, oracle.boxes3d, strict=True):
        np.testing.assert_allclose(found.box.center, true.center, atol=0.1)
        cosine = np.clip((np.trace(found.box.rotation.T @ true.rotation) - 1) / 2, -1, 1)
        assert np.degrees(np.arccos(cosine)) < 2.0
        offset = (true.center - found.box.center) @ found.box.rotation
        assert (offset >= -found.uncertainty.center[0] - 1e-6).all()
        assert (offset <= found.uncertainty.center[1] + 1e-6).all()
        assert found.has_front and found.visibility == 1.0 and found.truncation == 0.0
    assert made.scene.metric and made.scene.source == "pseudo_labels"
    np.testing.assert_allclose(made.scene.camera.gravity, DOWN)


def test_thresholds_of_detections():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [40, 40, 50, 50], [60, 60, 70, np.nan]], float)
    found = Detections(boxes, np.array([0.5, 0.9, 0.29, 0.3, 0.9]), tuple("abcde"))
    left_out = Counter()
    kept, hidden = believed(found, PseudoLabelConfig(), left_out)
    np.testing.assert_array_equal(kept, [1, 3])     # surest first; a overlaps b by 9/11
    assert left_out == {"detection: same object": 1, "detection: not sure": 2} and hidden == {"c", "e"}
    few, hidden = believed(found, PseudoLabelConfig(filters=Filters(max_objects=1)), left_out)
    np.testing.assert_array_equal(few, [1])
    assert left_out["detection: too many"] == 1 and "d" in hidden


@pytest.mark.parametrize("spoil, reason", [
    (lambda o: o.masks[0].fill(False), "mask: too small or too large"),
    (lambda o: o.masks[0].fill(True), "mask: too small or too large"),
    (lambda o: o.depth_map.__setitem__(o.masks[0], np.nan), "points: too few"),
    (lambda o: o.mask_scores.__setitem__(0, 0.01), "object: not believed"),
])  # fmt: skip
def test_what_cannot_be_measured_is_dropped_by_name(spoil, reason):
    oracle = two_boxes()
    spoil(oracle)
    made = labelled(oracle, filters=Filters(max_mask=0.7))
    assert made.left_out == {reason: 1} or reason == "mask: too small or too large"
    assert made.left_out[reason] >= 1
    if made.scene is not None:
        assert "chair" in made.scene.hidden and [o.category for o in made.scene.objects] == ["desk"]


def test_scattered_points_are_no_object():
    oracle = two_boxes()
    rng = np.random.default_rng(0)
    oracle.depth_map[oracle.masks[0]] = np.exp(rng.uniform(0, 6, int(oracle.masks[0].sum())))
    made = labelled(oracle, filters=Filters(dbscan_radius=0.001, dbscan_neighbours=400))
    assert made.left_out["points: too scattered"] >= 1


@pytest.mark.parametrize("spoil, reason", [
    (lambda o: setattr(o, "scores", np.full(2, 0.1)), "image: no object found"),
    (lambda o: setattr(o, "labels", ()) or setattr(o, "scores", np.zeros(0)), "image: no tags"),
    (lambda o: o.depth_map.fill(np.nan), "depth: no finite value"),
    (lambda o: o.depth_map.fill(-1.0), "depth: no finite value"),
    (lambda o: o.depth_map.fill(np.inf), "depth: no finite value"),
])  # fmt: skip
def test_a_picture_without_a_scene_says_why(spoil, reason):
    oracle = two_boxes()
    spoil(oracle)
    made = labelled(oracle)
    assert made.scene is None and made.reason == reason


def test_confidence_widens_what_is_uncertain():
    judging = Judging(depth_error=0.1, orientation_error=10.0, mask_error=1.0)
    sure = labelled(two_boxes(), judging=judging).scene.objects[0].uncertainty
    oracle = two_boxes()
    oracle.mask_scores[:] = 0.5
    unsure = labelled(oracle, judging=judging).scene.objects[0].uncertainty
    assert unsure.confidence == pytest.approx(sure.confidence / 2)
    assert (unsure.center > sure.center).all()
    far = float(np.linalg.norm(two_boxes().boxes3d[0].center))
    assert (unsure.center - sure.center).max() > 0.05 * far      # a tenth of the depth, once more
    oracle = two_boxes()
    oracle.orientations = Orientation(30.0, 10.0, 0.0, 0.6)
    assert labelled(oracle, judging=judging).scene.objects[0].uncertainty.turn >= 10 / 0.6


def test_without_an_orientation_there_is_no_front():
    oracle = two_boxes()
    oracle.orientations = Orientation(30.0, 10.0, 0.0, 0.2)
    made = labelled(oracle).scene
    assert not any(o.has_front for o in made.objects)
    for found, true in zip(made.objects, oracle.boxes3d, strict=True):
        np.testing.assert_allclose(found.box.rotation[:, 1], DOWN, atol=1e-9)
        np.testing.assert_allclose(found.box.center, true.center, atol=0.12)
    only = labelled(two_boxes(), fronts=("desk",)).scene
    assert [o.has_front for o in only.objects] == [False, True]


def test_calibration_from_depth_alone():
    oracle = two_boxes()
    told = DepthMap(oracle.depth_map, world.FOCAL)
    found = DepthCalibrator(PseudoLabelConfig()).calibrate(oracle.picture(), told, oracle.masks)
    np.testing.assert_allclose(found.intrinsics, world.INTRINSICS)
    assert np.degrees(np.arccos(found.gravity @ DOWN)) < 0.5 and found.gravity_error == Judging().gravity_error
    level = DepthCalibrator(PseudoLabelConfig(gravity="level", field_of_view=90.0)).calibrate(
        oracle.picture(), DepthMap(oracle.depth_map), oracle.masks)
    assert level.intrinsics[0, 0] == pytest.approx(world.WIDTH / 2)     # tan 45° = 1
    np.testing.assert_array_equal(level.gravity, [0, 1, 0])
    assert level.gravity_error > found.gravity_error
    nothing = DepthCalibrator(PseudoLabelConfig(gravity="none")).calibrate(oracle.picture(), told, oracle.masks)
    assert nothing.gravity is None


@pytest.mark.parametrize("settings, word", [
    ({"colour": 1}, "pseudo_labels.colour"), ({"filters": {"nmss": 1}}, "pseudo_labels.filters.nmss"),
    ({"gravity": "up"}, "gravity"), ({"max_side": "big"}, "max_side"), ({"judging": {"trim": 0.7}}, "trim"),
    ({"filters": {"nms": "half"}}, "nms"), ({"field_of_view": 500}, "field_of_view"),
])  # fmt: skip
def test_a_wrong_setting_is_named(settings, word):
    with pytest.raises(UserError, match=word):
        pseudo_label_config(settings)


def test_the_datasets_settings_are_good_ones():
    from configs.data import families

    config = pseudo_label_config(families.PSEUDO_LABELS)
    assert set(config.fronts) <= set(config.vocabulary) and set(config.sizes) == set(config.vocabulary)
