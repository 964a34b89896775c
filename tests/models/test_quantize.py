"""Kernels in 8 and 4 bits: how far off, how large, and that a model computes with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import LoRAConfig
from spatialllm_jax.models.llama import Llama
from spatialllm_jax.models.presets import NANO_LLAMA, preset
from spatialllm_jax.models.quantize import block_size, kernel_of, quantized, stored_shapes
from spatialllm_jax.models.spatialllm import SpatialLLM, abstract_params
from tests.conftest import random_params


def kernel(inputs=192, outputs=5):
    """Columns and blocks of very different size, one column and one block of zeros."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(inputs, outputs)) * 10.0 ** rng.uniform(-4, 2, (inputs // 64, 1, outputs)).repeat(
        64, 1).reshape(inputs, outputs)
    values[:, 2], values[64:128, 3] = 0, 0
    return values.astype(np.float32)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_error_is_half_a_step_at_most(scheme):
    exact = kernel()
    stored = jax.jit(lambda x: quantized(x, scheme))(exact)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in stored.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in stored_shapes(*exact.shape, scheme).items()}
    step = np.asarray(stored[f"scale_{scheme}"], np.float32)
    if scheme == "int4":
        step = step.repeat(64, axis=0)
    error = np.abs(np.asarray(kernel_of(stored)) - exact)
    assert (error <= 0.5 * step * (1 + 1e-5)).all()
    assert (error / step).max() > 0.45
    assert (np.asarray(kernel_of(stored))[:, 2] == 0).all()
    # The step is the smallest that reaches the largest value.
    levels = {"int8": 127, "int4": 7}[scheme]
    largest = np.abs(exact).max(0) if scheme == "int8" else np.abs(exact).reshape(-1, 64, 5).max(1).repeat(64, axis=0)
    np.testing.assert_allclose(np.where(largest > 0, step * levels, 0), largest, rtol=4e-3)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_inputs_can_be_split_over_devices(scheme):
    """A device's share of every array stands for its share of the kernel: nothing crosses along the inputs."""
    stored = quantized(jnp.asarray(kernel()), scheme)
    third = {name: leaf if name == "scale_int8" else leaf[leaf.shape[0] // 3:2 * leaf.shape[0] // 3]
             for name, leaf in stored.items()}
    np.testing.assert_array_equal(kernel_of(third), kernel_of(stored)[64:128])


def test_blocks_of_small_kernels():
    assert [block_size(inputs) for inputs in (4096, 14336, 96, 6)] == [64, 64, 32, 2]
    with pytest.raises(UserError, match=r"7 inputs.*int8"):
        block_size(7)


@pytest.mark.parametrize(("scheme", "layers", "whole"), [("int8", 0.500, 0.566), ("int4", 0.266, 0.362)])
def test_bytes_of_8b(scheme, layers, whole):
    """Against bfloat16: the layers take half and a quarter (and the scales); embedding and head stay as they are."""
    config = preset("spatialllm_8b")
    full = flatten_dict(abstract_params(config)["llm"], sep="/")
    small = flatten_dict(abstract_params(config.replace(llm_quantize=scheme))["llm"], sep="/")

    def size(flat, start):
        return sum(leaf.size * (leaf.dtype.itemsize if path.endswith(("int8", "int4")) else 2)
                   for path, leaf in flat.items() if path.startswith(start))

    assert size(full, "") == 2 * 8_030_261_248
    assert size(small, "layers") / size(full, "layers") == pytest.approx(layers, abs=1e-3)
    assert size(small, "") / size(full, "") == pytest.approx(whole, abs=1e-3)


LORA = LoRAConfig(3, 6.0)


def both(scheme, **changes):
    """(configuration and parameters of a quantised nano model with LoRA, and of the dense one it stands for)."""
    config = preset("nano").replace(llm_lora=LORA, **changes)
    dense = flatten_dict(random_params(config), sep="/")
    small = dict(dense)
    for path in [path for path in dense if path.startswith("llm/layers/") and path.endswith("/kernel")]:
        owner, stored = path.removesuffix("kernel"), jax.vmap(lambda x: quantized(x, scheme))(dense[path])
        del small[path]
        small.update({owner + name: leaf for name, leaf in stored.items()})
        dense[path] = jax.vmap(kernel_of)(stored)
    return (config.replace(llm_quantize=scheme), small), (config, dense)


@pytest.mark.parametrize(("scheme", "remat"), [
    pytest.param("int8", "none", marks=pytest.mark.slow), ("int4", "none"), ("int4", "full")])
def test_model_and_lora_gradients_are_those_of_the_dense_model(scheme, remat):
    tokens = np.random.default_rng(1).integers(0, 64, (2, 9))
    rest = dict(tokens=tokens, positions=np.tile(np.arange(9), (2, 1)), segment_ids=np.ones_like(tokens),
                branch_ids=0 * tokens, image_index=0 * tokens - 1)

    def run(config, flat):
        def loss(lora):
            hidden = SpatialLLM(config).apply({"params": unflatten_dict({**flat, **lora}, sep="/")}, **rest)
            return (hidden ** 3).mean(), hidden

        (_, hidden), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            {path: jnp.asarray(leaf) for path, leaf in flat.items() if "lora_" in path})
        return hidden, grads

    small, dense = both(scheme, remat=remat)
    assert {path: leaf.shape for path, leaf in small[1].items()} == {
        path: leaf.shape for path, leaf in flatten_dict(abstract_params(small[0]), sep="/").items()}
    hidden, grads = run(*small)
    expected, exact = run(*dense)
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    assert len(grads) == 14
    for path, leaf in exact.items():
        assert np.abs(leaf).max() > 1e-5, path
        np.testing.assert_allclose(grads[path], leaf, atol=1e-6, rtol=1e-5, err_msg=path)


def test_the_backward_pass_keeps_no_full_kernels():
    """Even without remat: what a step needs beside its arguments is far from all layers at full width."""
    config = dataclasses.replace(NANO_LLAMA, width=128, head_dim=32, mlp_dim=512, depth=8)
    model = Llama(config, lora=LORA, quantize="int8")
    x, positions = jnp.zeros((1, 4, 128)), jnp.zeros((1, 4), jnp.int32)
    from spatialllm_jax.models.attention import self_mask

    mask = self_mask(positions + 1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, positions, mask)["params"]
    flat = flatten_dict(shapes)
    lora = {path: leaf for path, leaf in flat.items() if "lora" in path[-1]}
    frozen = {path: leaf for path, leaf in flat.items() if path not in lora}

    def loss(lora, frozen):
        return model.apply({"params": unflatten_dict({**frozen, **lora})}, x, positions, mask)[0].sum()

    needed = jax.jit(jax.grad(loss)).lower(lora, frozen).compile().memory_analysis().temp_size_in_bytes
    full = 4 * sum(leaf.size for path, leaf in frozen.items() if path[-1] == "kernel_int8")
    assert needed < full / 2
