"""The sharding table: complete, exclusive, and without effect on results."""

import dataclasses
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from spatialllm_jax.errors import UserError
from spatialllm_jax.models.clip_text import abstract_clip
from spatialllm_jax.models.config import ConnectorConfig, LoRAConfig, Tiling
from spatialllm_jax.models.presets import CLIP_PRESETS, PRESETS, clip_preset, preset
from spatialllm_jax.models.quantize import kernel_of, quantized
from spatialllm_jax.models.spatialllm import SpatialLLM, abstract_params
from spatialllm_jax.parallel.mesh import make_mesh, replicated, shard_batch, share_of_rows
from spatialllm_jax.parallel.rules import (
    PARAMETERS,
    constrain,
    logical_axes,
    param_shardings,
    partition_spec,
    path_string,
    state_shardings,
)
from tests.conftest import random_params

EVERY_LORA = LoRAConfig(4, 8.0)
slow = pytest.mark.slow
eight = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices (XLA_FLAGS, set by tests/conftest.py)")


def every_tree():
    """Every preset, LoRA on everything, and the connectors and encoders that no preset has."""
    for name in PRESETS:
        yield name, abstract_params(preset(name))
    for name in ("nano", "nano_clip_mae"):
        yield f"{name} + LoRA", abstract_params(preset(name).replace(vision_lora=EVERY_LORA, llm_lora=EVERY_LORA))
    nano = preset("nano")
    for mix in ("interleave", "sum"):
        yield mix, abstract_params(nano.replace(connector=ConnectorConfig(mix=mix, grid=4, layers=3)))
    for scheme in ("int8", "int4"):
        yield scheme, abstract_params(nano.replace(llm_quantize=scheme))
    giant = dataclasses.replace(nano.vision[1], swiglu=True, num_registers=4)
    yield "swiglu + registers", abstract_params(nano.replace(vision=(giant,), vision_lora=EVERY_LORA))
    yield "tiling", abstract_params(nano.replace(tiling=Tiling(((nano.vision[0].image_size,) * 2,))))
    for name in CLIP_PRESETS:
        yield f"clip {name}", abstract_clip(dataclasses.replace(clip_preset(name), vision_lora=EVERY_LORA))


def test_every_parameter_matches_one_row_and_every_row_a_parameter():
    used = Counter()
    for name, tree in every_tree():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            axes = logical_axes(path_string(path))    # raises unless exactly one row matches
            assert len(axes) == leaf.ndim, (name, path_string(path))
            partition_spec(leaf.shape, axes, {"data": 2, "fsdp": 2, "tensor": 2}, path_string(path))
            used[next(pattern for pattern, _ in PARAMETERS if re.fullmatch(pattern, path_string(path)))] += 1
    assert set(used) == {pattern for pattern, _ in PARAMETERS}


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_8b_is_split_to_the_last_large_array(quantize):
    """On 64 devices nothing of a million entries or more stays whole."""
    mesh_shape = {"data": 1, "fsdp": 16, "tensor": 4}
    tree = abstract_params(preset("spatialllm_8b").replace(llm_quantize=quantize))
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        spec = partition_spec(leaf.shape, logical_axes(path_string(path)), mesh_shape, path_string(path))
        assert leaf.size < 1e6 or any(spec), path_string(path)


def test_errors_name_the_parameter():
    with pytest.raises(UserError, match=r"llm/layers/novel/kernel matches no row"):
        logical_axes("llm/layers/novel/kernel")
    with pytest.raises(UserError, match=r"a/b matches 2 rows"):
        logical_axes("a/b", ((r"a/.", ()), (r"./b", ())))
    with pytest.raises(UserError, match=r"a/b.*'tensor'.*'heads'.*'mlp'"):
        partition_spec((8, 8), ("heads", "mlp"), {"tensor": 2}, "a/b")
    with pytest.raises(UserError, match=r"a/b has shape \(8,\)"):
        partition_spec((8,), ("heads", "mlp"), {"tensor": 2}, "a/b")
    with pytest.raises(UserError, match=r"a/b: logical axis 'wings'"):
        partition_spec((8,), ("wings",), {"tensor": 2}, "a/b")


def test_axes_that_do_not_divide_stay_whole():
    assert partition_spec((6, 8), ("embed", "heads"), {"fsdp": 4, "tensor": 2}) == P(None, "tensor")
    assert partition_spec((8,), ("batch",), {"data": 2, "fsdp": 2}) == P(("data", "fsdp"))


def test_constrain_without_a_mesh_is_the_identity():
    x = jnp.ones((4, 2))
    assert constrain(x, ("batch", None)) is x


def test_meshes_that_do_not_fit_are_refused():
    count = len(jax.devices())
    assert dict(make_mesh().shape) == {"data": count, "fsdp": 1, "context": 1, "tensor": 1}
    with pytest.raises(UserError, match=r"data=3.*devices"):
        make_mesh(3, 5, 1)
    with pytest.raises(UserError, match="one may be -1"):
        make_mesh(-1, -1, 1)


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """What a mesh asks a device for."""

    id: int
    process_index: int
    slice_index: int = 0
    platform: str = "cpu"
    device_kind: str = "fake"


def fake_devices(count, per_process, per_slice=0):
    return [FakeDevice(k, k // per_process, k // (per_slice or count)) for k in range(count)]


def test_only_the_data_axis_leaves_a_slice():
    devices = fake_devices(32, 4, per_slice=8)
    for sizes in ({"data": 4, "fsdp": 8}, {"data": 8, "fsdp": 2, "tensor": 2}, {"data": -1, "context": 2, "tensor": 4}):
        mesh = make_mesh(**sizes, devices=devices)
        for block in mesh.devices.reshape(4, -1):     # "data" is the first axis: a quarter of it is a slice
            assert len({device.slice_index for device in block}) == 1
    with pytest.raises(UserError, match=r"data=2.*4 slices.*multiple of 4"):
        make_mesh(data=2, fsdp=16, devices=devices)


@pytest.mark.parametrize(("sizes", "shares"), [
    ({"fsdp": 8, "data": 1}, [(0, 2), (1, 2)]),
    ({"data": 2, "fsdp": 2, "tensor": 2}, [(0, 2), (1, 2)]),
    ({"data": 1, "tensor": 8}, [(0, 1), (0, 1)]),               # one row over both: each feeds all of it
    ({"data": 1, "fsdp": 1, "context": 8}, [(0, 1), (0, 1)]),
    ({"data": 1, "fsdp": 4, "context": 2}, [(0, 2), (1, 2)]),
])
def test_processes_feed_the_rows_of_their_devices(sizes, shares):
    mesh = make_mesh(**sizes, devices=fake_devices(8, 4))
    assert [share_of_rows(mesh, process) for process in range(2)] == shares


def test_rows_that_two_processes_hold_in_part_are_refused():
    mesh = make_mesh(data=3, tensor=2, devices=fake_devices(6, 3))
    with pytest.raises(UserError, match=r"process 0 hold parts \[0, 1\] of 3"):
        share_of_rows(mesh, 0)


@eight
def test_optimizer_moments_follow_their_parameters():
    params = abstract_params(preset("nano"))
    mesh = make_mesh(2, 2, 2)
    state = jax.eval_shape(optax.adamw(1e-3).init, params)
    shardings = state_shardings(state, params, mesh)
    expected = param_shardings(params, mesh)
    assert jax.tree.leaves(shardings[0].mu) == jax.tree.leaves(expected) == jax.tree.leaves(shardings[0].nu)
    assert shardings[0].count == replicated(mesh)


def forward(params, batch):
    return SpatialLLM(preset("nano")).apply({"params": params}, **batch)


def gradients(params, batch):
    return jax.grad(lambda tree: (forward(tree, batch) ** 3).mean())(params)


@pytest.fixture(scope="module")
def whole():
    """(parameters, batch, hidden states, gradients) of the nano model on one device."""
    rng = np.random.default_rng(0)
    params = random_params(preset("nano"))
    tokens = rng.integers(0, 64, (8, 16))
    batch = dict(tokens=tokens, positions=np.tile(np.arange(16), (8, 1)), segment_ids=np.ones_like(tokens),
                 branch_ids=np.zeros_like(tokens), image_index=np.tile(np.r_[np.arange(4), [-1] * 12], (8, 1)),
                 images=rng.integers(0, 256, (8, 1, 16, 16, 3), dtype=np.uint8))
    return params, batch, *jax.jit(lambda *x: (forward(*x), gradients(*x)))(params, batch)


@eight
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1), (1, 2, 2, 2), pytest.param((2, 1, 1, 4), marks=slow)])
def test_sharded_forward_equals_single(shape, whole, capfd):
    params, batch, expected, _ = whole
    mesh = make_mesh(*shape)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, param_shardings(params, mesh))
        kernel = placed["llm"]["layers"]["mlp"]["up"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size // math.prod(shape[1:])
        # A function of its own: without the mesh it was traced without constraints.
        out = jax.jit(lambda *x: forward(*x))(placed, shard_batch(batch, mesh))
    assert out.sharding.is_equivalent_to(NamedSharding(mesh, P(("data", "fsdp"), "context")), out.ndim)
    np.testing.assert_allclose(out, expected, atol=5e-5)
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


@eight
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 2, 2, 2), pytest.param((1, 1, 1, 8), marks=slow)])
def test_gradients_on_a_split_mesh_equal_single(shape, whole):
    """Of every parameter; the connector's were wrong by half here before its activations were constrained."""
    params, batch, _, expected = whole
    mesh = make_mesh(*shape)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, param_shardings(params, mesh))
        found = jax.jit(lambda *x: gradients(*x))(placed, shard_batch(batch, mesh))
    for (path, theirs), mine in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        if "key/bias" not in path_string(path):     # softmax does not see it: its gradient is rounding alone
            np.testing.assert_allclose(mine, theirs, atol=1e-4 * np.abs(theirs).max(), err_msg=path_string(path))


@eight
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_quantised_kernels_are_multiplied_where_they_lie(scheme):
    """Split over inputs and outputs, a stored kernel gives the products that it gives whole."""
    rng = np.random.default_rng(0)
    stored = quantized(jnp.asarray(rng.normal(size=(256, 16)), jnp.float32), scheme)
    x = rng.normal(size=(8, 256)).astype(np.float32)
    mesh = make_mesh(2, 2, 2)
    paths = {name: f"llm/layers/mlp/up/{name}" for name in stored}
    with jax.set_mesh(mesh):
        placed = {name: jax.device_put(leaf, jax.NamedSharding(mesh, partition_spec(
            leaf.shape, logical_axes(paths[name])[1:], mesh.shape))) for name, leaf in stored.items()}
        found = jax.jit(lambda x, stored: x @ kernel_of(stored))(x, placed)
    values = placed[f"kernel_{scheme}"]
    assert values.addressable_shards[0].data.size * 4 == values.size
    np.testing.assert_allclose(found, x @ np.asarray(kernel_of(stored)), atol=1e-4)
