"""Probes: features under boxes by hand, ridge against scikit-learn's closed form, labels near boundaries."""

import dataclasses

import jax
import numpy as np
import pytest

from spatialllm_jax.data import images
from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation import probe
from spatialllm_jax.models.presets import preset
from spatialllm_jax.models.spatialllm import VisionTowers, init_params
from tests.conftest import tiny_records
from tests.data.test_patch_words import record, thing


def test_features_under_a_box():
    # One channel that holds the patch's number on a 6 x 6 map; the box covers rows and columns 0-2.
    features = np.arange(36, dtype=np.float32)[:, None]
    cells = probe.box_features(features, (0.0, 0.0, 0.5, 0.5)).reshape(3, 3)
    assert cells.tolist() == [[0, 1, 2], [6, 7, 8], [12, 13, 14]]
    assert probe.box_features(features, (0.0, 0.0, 1.0, 1.0)).reshape(3, 3)[0, 0] == np.mean([0, 1, 6, 7])


@pytest.mark.parametrize("azimuth, side", [(0, 0), (35, 0), (36, None), (54, None), (56, 1), (180, 2), (300, 3)])
def test_sides_near_a_boundary_are_not_asked(azimuth, side):
    (box, category, found), = probe.labelled_boxes(record([thing("car", (0, 0, 40, 80), (0, 0, 3), azimuth)]))
    assert found == side and category == "car"
    assert box.tolist() == [0.0, 0.0, 0.5, 1.0]


def test_ridge_against_its_normal_equations():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    x = (rng.normal(size=(400, 9)) + 1.2 * np.eye(3)[labels].repeat(3, 1)).astype(np.float32)
    train = np.arange(400) < 300
    # An augmented least-squares problem has the same solution: rows sqrt(penalty) * I with targets 0.
    scaled = np.c_[(x - x[train].mean(0)) / (x[train].std(0) + 1e-3), np.ones(400)]
    left = np.r_[scaled[train], np.sqrt(probe.RIDGE) * np.eye(10)]
    weights = np.linalg.lstsq(left, np.r_[np.eye(3)[labels[train]], np.zeros((10, 3))], rcond=None)[0]
    expected = ((scaled[~train] @ weights).argmax(1) == labels[~train]).mean()
    found = probe.ridge_accuracy(x, labels, train)
    assert found.acc == pytest.approx(expected) and found.n == 100 and found.chance == pytest.approx(1 / 3)
    assert found.acc > 0.6


def test_too_few_objects_are_named():
    encoder = preset("nano").vision[1]
    params = init_params(preset("nano"), jax.random.key(0))["vision"][encoder.name]
    plain = tiny_records("train", 4)
    with pytest.raises(UserError, match="has no scene"):
        probe.probe(encoder, params, plain, [1])
    scene = record([thing("cat", (0, 0, 9, 9), (0, 0, 2), 0.0)], 24, 20).scene
    with pytest.raises(UserError, match="too few objects"):
        probe.probe(encoder, params, [dataclasses.replace(item, scene=scene) for item in plain], [1])
    with pytest.raises(UserError, match="layer 3 does not exist: dinov2 has hidden states 0 to 2"):
        probe.probe(encoder, params, plain, [3])


def test_layers_are_the_encoders_own_features():
    """Every layer's features are those that the model would use with that `feature_layer`."""
    config = preset("nano").vision[1]
    params = init_params(preset("nano"), jax.random.key(0))["vision"][config.name]
    records = tiny_records("train", 5)
    (start, found), = probe._encoded(config, params, records, [1, -1])
    assert start == 0 and found.shape[:2] == (2, probe._BATCH)
    pixels = np.stack([images.load(item.image, config.image_size, name="x") for item in records])
    for layer, values in zip((1, -1), found, strict=True):
        encoder = VisionTowers((dataclasses.replace(config, feature_layer=layer),), 4, "float32", "none", None)
        expected = encoder.apply({"params": {config.name: params}}, pixels)
        np.testing.assert_allclose(values[:5], expected, atol=1e-5)
