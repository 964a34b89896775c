"""The vision transformer's parts against closed forms and torch; parity as a whole is in tests/convert."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialllm_jax.errors import UserError
from spatialllm_jax.models.presets import NANO_CLIP, NANO_DINOV2
from spatialllm_jax.models.vit import ViT, interpolate_positions, normalize, resize_matrix, sincos_positions


def test_sincos_positions_element_by_element():
    """MAE, section "Implementation": for column x and row y, sin x, cos x, sin y, cos y of 10000^(-i / quarter)."""
    table = sincos_positions(3, 16)
    assert not table[0].any()
    for row in range(3):
        for col in range(3):
            rates = [10000 ** (-i / 4) for i in range(4)]
            expected = [f(at * r) for at in (col, row) for f in (math.sin, math.cos) for r in rates]
            np.testing.assert_allclose(table[1 + row * 3 + col], expected, atol=1e-6)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("source", "target"), [(37, 12), (37, 16), (5, 9), (4, 3)])
def test_positions_are_interpolated_as_torch_does(source, target, antialias):
    torch = pytest.importorskip("torch", reason="the oracle is torch: pip install torch")
    table = np.random.default_rng(0).normal(size=(1 + source**2, 8)).astype(np.float32)
    ours = interpolate_positions(jnp.asarray(table), source, target, antialias)
    grid = torch.tensor(table[1:]).reshape(1, source, source, 8).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False,
                                             antialias=antialias)
    np.testing.assert_array_equal(ours[0], table[0])
    np.testing.assert_allclose(ours[1:], theirs.permute(0, 2, 3, 1).reshape(-1, 8).numpy(), atol=1e-5)


def test_resize_matrix_keeps_constants():
    for antialias in (False, True):
        np.testing.assert_allclose(resize_matrix(37, 12, antialias).sum(axis=1), 1, atol=1e-6)


@pytest.fixture(scope="module")
def dino():
    shapes = jax.eval_shape(ViT(NANO_DINOV2).init, jax.random.key(0), np.zeros((1, 16, 16, 3)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, jnp.float32), shapes)


@partial(jax.jit, static_argnums=(0, 3))
def encode(config, params, x, output="features"):
    return ViT(config).apply({"params": params}, x, output)


def images(count=2, size=16):
    return np.random.default_rng(0).normal(size=(count, size, size, 3)).astype(np.float32)


def test_features_are_the_patch_tokens_of_the_chosen_state(dino):
    for config in (NANO_DINOV2, dataclasses.replace(NANO_DINOV2, feature_layer=-1),
                   dataclasses.replace(NANO_DINOV2, feature_layer=0)):
        states = encode(config, dino, images(), "states")
        features = encode(config, dino, images())
        np.testing.assert_allclose(features, states[config.feature_layer][:, 1:], atol=1e-6)
        assert features.shape == (2, 16, 24)


def test_only_the_blocks_that_are_needed_run(dino):
    """NaN in the last block's weights cannot reach the features of state -2, and does reach those of -1."""
    poisoned = {**dino, "blocks": jax.tree.map(lambda x: x.at[-1].set(jnp.nan), dino["blocks"])}
    good = encode(NANO_DINOV2, poisoned, images())
    np.testing.assert_array_equal(good, encode(NANO_DINOV2, dino, images()))
    last = dataclasses.replace(NANO_DINOV2, feature_layer=-1)
    assert np.isnan(encode(last, poisoned, images())).all()


def test_normalize_is_per_encoder_and_resizes():
    image = np.full((1, 16, 16, 3), 255, np.uint8)
    np.testing.assert_allclose(normalize(image, NANO_DINOV2)[0, 0, 0],
                               [(1 - .485) / .229, (1 - .456) / .224, (1 - .406) / .225], rtol=1e-5)
    np.testing.assert_allclose(normalize(image, NANO_CLIP)[0, 0, 0],
                               [(1 - .48145466) / .26862954, (1 - .4578275) / .26130258,
                                (1 - .40821073) / .27577711], rtol=1e-5)
    assert normalize(np.zeros((2, 40, 30, 3), np.uint8), NANO_CLIP).shape == (2, 16, 16, 3)


@pytest.mark.parametrize("change", [{"feature_layer": 3}, {"feature_layer": -4}, {"patch_size": 5}, {"num_heads": 5},
                                    {"kind": "siglip"}])
def test_impossible_encoders_are_named(change):
    with pytest.raises(UserError, match="dinov2"):
        dataclasses.replace(NANO_DINOV2, **change)
