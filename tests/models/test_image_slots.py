"""Empty image slots: same features for the others, and no work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialllm_jax.models.image_slots import encode_present
from spatialllm_jax.models.presets import preset
from spatialllm_jax.models.spatialllm import SpatialLLM
from spatialllm_jax.parallel.mesh import make_mesh, shard_batch
from spatialllm_jax.parallel.rules import param_shardings
from tests.conftest import random_params

MESHES = [None, {"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 2, "context": 4},
          {"data": 1, "context": 2, "tensor": 4}]


def slots(rows=8, count=3, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (rows, count, 4, 4, 3), dtype=np.uint8),
            np.arange(count) < rng.integers(0, count + 1, (rows, 1)))


def encode(params, images):
    """Something of each image alone: [M, 1, 2]."""
    x = images.astype(jnp.float32).reshape(len(images), 1, -1) / 255
    return jnp.tanh(x @ params["kernel"])


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_features_and_gradients_are_those_of_all_slots(sizes, chunk):
    images, present = slots()
    params = {"kernel": np.random.default_rng(1).normal(size=(48, 2)).astype(np.float32)}

    def everything(params):
        out = encode(params, images.reshape(-1, 4, 4, 3)).reshape(8, 3, 1, 2)
        return jnp.where(present[..., None, None], out, 0.0)

    def weighted(function):
        return jax.value_and_grad(lambda params: (function(params) * (1 + jnp.arange(48).reshape(8, 3, 1, 2))).sum())

    expected, gradient = weighted(everything)(params)
    if sizes is None:
        whole = jnp.asarray(images), jnp.asarray(present)
        found, mine = weighted(lambda p: encode_present(encode, p, *whole, chunk))(params)
    else:
        mesh = make_mesh(**{"data": 1, **sizes})
        with jax.set_mesh(mesh):
            placed = shard_batch((images, present), mesh)
            found, mine = jax.jit(weighted(lambda p: encode_present(encode, p, *placed, chunk)))(params)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(mine["kernel"], gradient["kernel"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("held", "calls"), [(0, 0), (1, 1), (4, 1), (5, 2), (12, 3)])
def test_chunks_of_empty_slots_are_not_computed(held, calls):
    seen = []

    def counted(params, images):
        jax.debug.callback(lambda: seen.append(len(images)))
        return encode(params, images)

    images, _ = slots(4, 3)
    present = np.random.default_rng(0).permutation(np.arange(12) < held).reshape(4, 3)
    jax.block_until_ready(jax.jit(lambda *x: encode_present(counted, *x, chunk=4))(
        {"kernel": np.ones((48, 2), np.float32)}, images, present))
    jax.effects_barrier()
    assert seen == [4] * calls


def test_devices_with_the_same_rows_share_the_images():
    """Eight images of one row on eight devices: one each, though the chunk would hold them all."""
    seen = []

    def counted(params, images):
        jax.debug.callback(lambda: seen.append(len(images)))
        return encode(params, images)

    images, _ = slots(1, 8)
    mesh = make_mesh(data=1, context=4, tensor=2)
    with jax.set_mesh(mesh):
        jax.block_until_ready(jax.jit(lambda *x: encode_present(counted, *x))(
            {"kernel": np.ones((48, 2), np.float32)}, *shard_batch((images, np.ones((1, 8), bool)), mesh)))
        jax.effects_barrier()
    assert seen == [1] * 8


@pytest.mark.parametrize("sizes", [
    None, pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow),
    {"data": 1, "fsdp": 2, "context": 4}])
def test_the_model_sees_the_same_tokens(sizes):
    """Row by row and image by image, as every slot encoded; empty slots give nothing."""
    config = preset("nano")
    params, rng = random_params(config), np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 3, 16, 16, 3), dtype=np.uint8)
    present = np.arange(3) < rng.integers(0, 4, (8, 1))

    def tokens(params, images, *mask):
        return SpatialLLM(config).apply({"params": params}, images, None, *mask, method="visual_tokens")

    expected = np.array(jax.jit(tokens)(params, images))
    expected = np.where(np.repeat(present, expected.shape[1] // 3, axis=1)[..., None], expected, 0.0)
    if sizes is None:
        found = jax.jit(tokens)(params, images, present)
    else:
        mesh = make_mesh(**sizes)
        with jax.set_mesh(mesh):
            found = jax.jit(lambda *x: tokens(*x))(jax.device_put(params, param_shardings(params, mesh)),
                                                   *shard_batch((images, present), mesh))
    np.testing.assert_allclose(found, expected, atol=2e-5)
