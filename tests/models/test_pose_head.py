"""The pose head: shapes, what its numbers mean, by hand and against SciPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from spatialllm_jax.errors import UserError
from spatialllm_jax.models import pose, store
from spatialllm_jax.models.presets import NANO_DINOV2
from spatialllm_jax.scene.pose import angles_from_rotations, pose_errors, rotations_from_angles

CONFIG = pose.PoseConfig(NANO_DINOV2, layers=(1, -1), grid=2, width=8, hidden=16, target_spread=5.0)
SIX = dataclasses.replace(CONFIG, output="rotation")


estimate = jax.jit(pose.estimate, static_argnums=1)
losses = jax.jit(pose.losses, static_argnums=2)
soft_targets = jax.jit(pose.soft_targets, static_argnums=1)


def peaks(azimuth, elevation, theta, config=CONFIG, height=50.0):
    """Logits with all mass on the bins that hold these angles."""
    counts, lows = config.bin_counts, (0, -90, -180)
    parts = []
    for angle, count, low in zip((azimuth, elevation, theta), counts, lows, strict=True):
        logits = np.zeros(count)
        logits[int((angle - low) // config.bin_size)] = height
        parts.append(logits)
    return jnp.asarray(np.concatenate(parts)[None])


@pytest.mark.parametrize("changes", [{}, {"output": "rotation"}, {"grid": 3}, {"cls": False, "layers": (2,)}])
def test_shapes(changes):
    config = dataclasses.replace(CONFIG, **changes)
    features = jax.ShapeDtypeStruct((3, config.num_tokens, config.channels), jnp.float16)
    params = jax.eval_shape(pose.PoseHead(config).init, jax.random.key(0), features)["params"]
    outputs = jax.eval_shape(lambda p, x: pose.apply_head(config, p, x), params, features)
    assert outputs.shape == (3, config.num_outputs) and outputs.dtype == jnp.float32
    assert config.num_outputs == (7 if config.output == "rotation" else 72 + 36 + 72)
    found = jax.eval_shape(lambda x: pose.estimate(x, config), outputs)
    assert found.angles.shape == (3, 3) and found.confidence.shape == (3,)
    with pytest.raises(ValueError, match="the head expects"):
        jax.eval_shape(lambda p, x: pose.apply_head(config, p, x[:, 1:]), params, features)


@pytest.mark.parametrize("angles", [(2.5, 12.5, -177.5), (357.5, -87.5, 177.5), (182.5, 87.5, 2.5)])
def test_one_bin_is_its_middle(angles):
    found = estimate(peaks(*angles), CONFIG)
    np.testing.assert_allclose(found.angles[0], angles, atol=1e-3)
    assert found.confidence[0] == pytest.approx(1.0)


@pytest.mark.parametrize("masses, answer, sure", [
    # A quarter of the azimuth's mass at 357.5, three at 2.5: averaged over the seam, not the mean of the numbers.
    ({0: 0.75, 71: 0.25}, pytest.approx(1.25, abs=1e-3), pytest.approx(1.0, abs=1e-4)),
    # 60 % front, 40 % back are not averaged: the front, at a confidence of 60 %.
    ({0: 0.6, 36: 0.4}, pytest.approx(2.5, abs=1e-3), pytest.approx(0.6, abs=1e-3))])
def test_mass_on_two_bins(masses, answer, sure):
    logits = np.full(180, -40.0)
    logits[list(masses)] = np.log(list(masses.values()))
    logits[72 + 18], logits[108 + 36] = 10, 10
    found = estimate(jnp.asarray(logits[None]), CONFIG)
    assert found.angles[0, 0] == answer and found.confidence[0] == sure


def test_soft_targets():
    angles = jnp.array([[0.0, 88.0, 179.0]])
    azimuth, elevation, theta = (np.asarray(target, float) for target in soft_targets(angles, CONFIG))
    for target in (azimuth, elevation, theta):
        assert target.sum() == pytest.approx(1.0, abs=1e-5)
    assert azimuth[0, 0] == pytest.approx(azimuth[0, -1], rel=1e-5)         # 2.5 and 357.5 are as near to 0
    assert elevation[0].argmax() == 35 and elevation[0, 0] < 1e-6           # no way around: -90 is far from 88
    assert theta[0].argmax() == 71 and theta[0, 0] > 0.1                    # -177.5 is 3.5 degrees from 179
    ratio = azimuth[0, 1] / azimuth[0, 0]                                   # 7.5 against 2.5 degrees, deviation 5
    assert ratio == pytest.approx(np.exp(-0.5 * (1.5**2 - 0.5**2)), rel=1e-4)


def test_cross_entropy_is_least_at_the_targets_themselves():
    angles = jnp.array([[31.0, 10.0, -20.0]])
    targets = [np.asarray(target, float) for target in soft_targets(angles, CONFIG)]
    logits = jnp.asarray(np.concatenate([np.log(target + 1e-30) for target in targets], axis=-1))
    loss, right = losses(logits, angles, CONFIG)
    entropy = [-(t * np.log(t + 1e-30)).sum() for t in targets]
    np.testing.assert_allclose(loss[0], entropy, rtol=1e-4)
    assert right.tolist() == [[1, 1, 1]]
    assert losses(logits + np.arange(180, dtype=np.float32) / 100, angles, CONFIG)[0].sum() > loss.sum()
    found = estimate(logits, CONFIG).angles
    np.testing.assert_allclose(found[0], angles[0], atol=1.0)


def test_six_numbers_are_two_columns():
    """Any two columns of a rotation, scaled and skewed, give it back; angles as `scene.pose` has them."""
    rotations = Rotation.random(20, random_state=0).as_matrix()
    six = np.concatenate([2 * rotations[:, :, 0], 3 * rotations[:, :, 1] + rotations[:, :, 0]], axis=1)
    outputs = jnp.asarray(np.concatenate([six, np.full((20, 1), np.log(0.2))], axis=1), jnp.float32)
    found = estimate(outputs, SIX)
    assert pose_errors(rotations_from_angles(np.asarray(found.angles)), rotations).max() < 0.05
    np.testing.assert_allclose(found.confidence, 1 - np.exp(-(np.pi / 6) / 0.2), rtol=1e-4)
    true = jnp.asarray(angles_from_rotations(rotations), jnp.float32)
    loss, right = losses(outputs, true, SIX)
    np.testing.assert_allclose(loss[:, 0], np.log(0.2), atol=0.02)
    assert loss.shape == (20, 1) and right.min() == 1


def test_rotation_loss_grows_with_the_error():
    outputs = jnp.asarray([[1.0, 0, 0, 0, 1, 0, 0.0]])
    base = angles_from_rotations(np.eye(3)[None])
    for degrees in (10.0, 60.0, 170.0):
        turned = angles_from_rotations(Rotation.from_rotvec([[0, np.radians(degrees), 0]]).as_matrix())
        loss, right = losses(outputs, jnp.asarray(turned, jnp.float32), SIX)
        assert loss[0, 0] == pytest.approx(np.radians(degrees), abs=2e-3) and right[0, 0] == (degrees < 30)
    gradient = jax.grad(lambda x: losses(x, jnp.asarray(base, jnp.float32), SIX)[0].sum())(outputs)
    assert np.isfinite(gradient).all()                          # at the answer itself, where an arccosine has none


def test_rotations_inside_jit_are_those_outside():
    angles = np.stack([np.linspace(0, 350, 9), np.linspace(-80, 80, 9), np.linspace(-170, 170, 9)], -1)
    np.testing.assert_allclose(pose.rotations(jnp.asarray(angles, jnp.float32)), rotations_from_angles(angles),
                               atol=1e-5)


@pytest.mark.parametrize("changes, said", [
    ({"output": "quaternion"}, "pose.output 'quaternion'"), ({"bin_size": 7.0}, "pose.bin_size 7.0"),
    ({"layers": (3,)}, "pose.layers (3,): dinov2 has hidden states 0 to 2"), ({"layers": ()}, "pose.layers ()"),
    ({"width": 0}, "pose.width 0"), ({"dropout": 1.0}, "pose.dropout 1.0"), ({"context": 0.0}, "pose.context 0.0")])
def test_mistakes_in_a_config(changes, said):
    with pytest.raises(UserError) as problem:
        dataclasses.replace(CONFIG, **changes)
    assert said in str(problem.value)


def test_a_config_survives_its_file():
    assert store.config_from_json(store.config_to_json(CONFIG)) == CONFIG
