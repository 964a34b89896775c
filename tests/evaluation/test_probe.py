"""Probes: features under boxes by hand, labels near boundaries, features that hold the answer or do not."""

import dataclasses

import jax
import numpy as np
import pytest

from spatialllm_jax.data import images
from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation import probe
from spatialllm_jax.models.presets import preset
from spatialllm_jax.models.spatialllm import VisionTowers
from tests.conftest import random_params, tiny_records
from tests.data.test_patch_words import record, thing


def test_features_under_a_box():
    # One channel that holds the patch's number on a 6 x 6 map; the box covers rows and columns 0-2.
    features = np.arange(36, dtype=np.float32)[:, None]
    cells = probe.box_features(features, (0.0, 0.0, 0.5, 0.5)).reshape(3, 3)
    assert cells.tolist() == [[0, 1, 2], [6, 7, 8], [12, 13, 14]]
    assert probe.box_features(features, (0.0, 0.0, 1.0, 1.0)).reshape(3, 3)[0, 0] == np.mean([0, 1, 6, 7])


@pytest.mark.parametrize("azimuth, side", [(0, 0), (35, 0), (36, None), (54, None), (56, 1), (180, 2), (300, 3)])
def test_sides_near_a_boundary_are_not_asked(azimuth, side):
    (found,) = probe.labelled_objects([record([thing("car", (0, 0, 40, 80), (0, 0, 3), azimuth)])])
    assert (found.side, found.category, found.image) == (side, "car", 0)
    assert np.cos(np.radians(found.azimuth - azimuth)) == pytest.approx(1) and found.distance == pytest.approx(3.0)
    assert found.box.tolist() == [0.0, 0.0, 0.5, 1.0]


def test_things_without_a_front_have_a_distance_only():
    (found,) = probe.labelled_objects([record([thing("barrel", (0, 0, 40, 80), (0, 0, 2), 10, has_front=False)])])
    assert (found.side, found.azimuth, found.distance) == (None, None, 2.0)


def crowd(pictures=300, seed=0):
    """Two objects per picture with all that a probe asks for, drawn independently."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(pictures):
        for _ in range(2):
            azimuth = float(rng.uniform(0, 360))
            off = abs((azimuth + 45) % 90 - 45)
            found.append(probe.Labelled(
                index, np.array([0, 0, 1, 1.0]), "cat" if rng.random() < 0.5 else "dog", azimuth,
                round(azimuth / 90) % 4 if off <= probe.CLEAR else None, float(np.exp(rng.uniform(0, 2)))))
    return found


def test_what_features_hold_is_read_and_what_they_lack_is_not():
    objects, rng = crowd(), np.random.default_rng(1)
    azimuth = np.radians([item.azimuth for item in objects])
    # Waves of the azimuth: bumps over bins are sums of such, so a linear probe can draw them.
    waves = [f(k * azimuth) for k in range(1, 6) for f in (np.cos, np.sin)]
    known = np.stack([*waves, [item.category == "cat" for item in objects],
                      np.log([item.distance for item in objects])], -1)
    mixing = rng.normal(size=(known.shape[1], 40))
    found = probe.probe((known @ mixing + 0.01 * rng.normal(size=(600, 40))).astype(np.float32), objects)
    assert found.side.acc > 0.9 and found.azimuth.acc > 0.97 and found.azimuth_error.value < 6
    assert found.depth.acc > 0.97 and found.closer.acc > 0.97 and found.category.acc > 0.97
    assert found.side.chance == 0.25 and found.closer.chance == 0.5 and found.category.chance == 0.5
    assert found.azimuth.n == found.category.n == 120 and found.side.n < 120

    blind = probe.probe(rng.normal(size=(600, 40)).astype(np.float32), objects)
    for name in ("side", "azimuth", "depth", "closer", "category"):
        score = getattr(blind, name)
        assert score.low - 0.06 <= score.chance <= score.high + 0.06, name
    assert 60 < blind.azimuth_error.value < 120
    lines = probe.table({"all": found, "nothing": blind}).splitlines()
    assert len(lines) == 4 and lines[1].startswith("all") and lines[-1].startswith("chance")


def test_distances_without_a_common_unit_are_not_probed():
    objects = [dataclasses.replace(item, distance=None) for item in crowd()]
    found = probe.probe(np.random.default_rng(0).normal(size=(600, 5)).astype(np.float32), objects)
    assert found.depth is None and found.closer is None
    assert probe.table({"x": found}).splitlines()[1].split()[-8:-4].count("-") == 2


def test_the_peak_between_bins():
    for angle in (0.0, 4.0, 100.0, 352.0, 359.0):
        found = probe._peak(probe._soft_bins(np.array([angle])))[0]
        assert abs((found - angle + 180) % 360 - 180) < 1.5


def test_too_few_objects_are_named():
    encoder = preset("nano").vision[1]
    plain = tiny_records("train", 4)
    eye = probe.Encoder("eye", encoder, {}, (1,))       # no picture is encoded
    with pytest.raises(UserError, match="has no scene"):
        probe.compare([eye], [], plain)
    scene = record([thing("cat", (0, 0, 9, 9), (0, 0, 2), 0.0)], 24, 20).scene
    with pytest.raises(UserError, match="too few objects"):
        probe.compare([eye], [], [dataclasses.replace(item, scene=scene) for item in plain])
    with pytest.raises(UserError, match="layer 3 does not exist: dinov2 has hidden states 0 to 2"):
        probe.Encoder("eye", encoder, {}, (3,))
    with pytest.raises(UserError, match="layer 1 of dinov2 is named twice"):
        probe.Encoder("eye", encoder, {}, (1, 2, 1))
    with pytest.raises(UserError, match=r"mix eye\+ear: 'ear' is none of the encoders eye"):
        probe.compare([eye], [("eye", "ear")], plain)


def test_a_mix_is_its_encoders_side_by_side():
    """Features of a mix are the cells of the connector's own channel concatenation, in another order of columns."""
    config = preset("nano")
    params = random_params(config)["vision"]
    item = record([thing("cat", (4, 4, 60, 70), (0, 0, 2), 0.0)])
    item = dataclasses.replace(item, image=tiny_records("train", 1)[0].image)
    objects = probe.labelled_objects([item])
    parts = [probe.encode(probe.Encoder(v.name, v, params[v.name], (-2,)), [item], objects, 4)[-2]
             for v in config.vision]
    towers = VisionTowers(config.vision, 4, "float32", "none", None)
    mixed = jax.jit(towers.apply)({"params": params}, images.load(item.image, 16)[None])[0]
    expected = probe.box_features(np.asarray(mixed), objects[0].box)
    np.testing.assert_allclose(np.sort(np.concatenate(parts, axis=1)[0]), np.sort(expected), atol=1e-5)


def test_layers_are_the_encoders_own_features():
    """Every layer's features are those that the model would use with that `feature_layer`."""
    config = preset("nano").vision[1]
    params = random_params(preset("nano"))["vision"][config.name]
    records = tiny_records("train", 5)
    (start, found), = probe._encoded(config, params, records, [1, -1])
    assert start == 0 and found.shape[:2] == (2, probe._BATCH)
    pixels = np.stack([images.load(item.image, config.image_size, name="x") for item in records])
    for layer, values in zip((1, -1), found, strict=True):
        encoder = VisionTowers((dataclasses.replace(config, feature_layer=layer),), 4, "float32", "none", None)
        expected = jax.jit(encoder.apply)({"params": {config.name: params}}, pixels)
        np.testing.assert_allclose(values[:5], expected, atol=1e-5)
