"""Every back end against the reference, forward and backward, on one device and on a mesh; kernels are interpreted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from spatialllm_jax.errors import UserError
from spatialllm_jax.models import flash, kernels
from spatialllm_jax.models.attention import (
    Mask,
    all_visible,
    allowed,
    attention,
    blockwise_attention,
    choose,
    facts,
    self_mask,
    xla_attention,
)
from spatialllm_jax.models.branches import twig
from spatialllm_jax.parallel import rules
from spatialllm_jax.parallel.mesh import make_mesh

SMALL = {
    "gpu": dataclasses.replace(flash.tiles_for("cpu"), forward=(32, 16), dq=(16, 32), dkv=(32, 16)),
    "tpu": dataclasses.replace(flash.tiles_for("cpu"), like="tpu", forward=(128, 128), dq=(128, 128),
                               dkv=(128, 128)),
}


def random_mask(seed, rows, length):
    """Segments in order with padding behind, and within each a trunk, then branches, and branches of these."""
    rng = np.random.default_rng(seed)
    segments, branches = np.zeros((rows, length), int), np.zeros((rows, length), int)
    for row in range(rows):
        cuts = np.sort(rng.choice(np.arange(1, length), size=rng.integers(1, 5), replace=False))
        for number, (start, end) in enumerate(zip([0, *cuts[:-1]], cuts, strict=True)):
            segments[row, start:end] = number + 1
            branches[row, start:end] = np.maximum(np.sort(rng.integers(-2, 4, end - start)), 0)
            on = branches[row, start:end]       # some of a branch's tokens are on branches of its own
            on[:] = np.where(on > 0, twig(on, rng.integers(0, 3, end - start)), 0)
    return self_mask(jnp.asarray(segments), jnp.asarray(branches))


def qkv(seed, rows, length, slots, heads, kv_heads, width, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(rows, n, h, width)), dtype)
                 for n, h in ((length, heads), (slots, kv_heads), (slots, kv_heads)))


def with_gradients(function):
    """Jitted (q, k, v, mask, d_out) -> output and the gradients of q, k, v."""
    @jax.jit
    def run(q, k, v, mask, d_out):
        out, pull = jax.vjp(lambda *x: function(*x, mask), q, k, v)
        return out, *pull(d_out.astype(out.dtype))
    return run


reference = with_gradients(xla_attention)


@functools.cache
def flash_of(like):
    return with_gradients(lambda q, k, v, mask: kernels.flash_attention(q, k, v, *facts(mask), SMALL[like]))


def assert_same(got, want, atol=2e-5):
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=atol, rtol=atol,
                                   err_msg=name)


@pytest.mark.parametrize("like", SMALL)
def test_flash_is_the_reference_on_random_rows(like):
    """Odd lengths, grouped heads, segments, branches, padding; rows of tiles with nothing visible among them."""
    shape = (2, 150, 150, 4, 2, 24)
    for seed in range(4):
        q, k, v = qkv(seed, *shape)
        mask = random_mask(seed, 2, 150)
        d_out = jnp.asarray(np.random.default_rng(9).normal(size=q.shape), jnp.float32)
        got = flash_of(like)(q, k, v, mask, d_out)
        assert_same(got, reference(q, k, v, mask, d_out))
        alone = np.asarray(mask.q_segment) == 0
        assert alone.any() and not any(np.asarray(x)[alone].any() for x in got)


@pytest.mark.parametrize("like", SMALL)
def test_packed_samples_and_branches_do_not_leak(like):
    """Other keys, values and output gradients of one sample leave every bit of the others as it was."""
    q, k, v = qkv(5, 2, 150, 150, 4, 2, 24)
    segments = np.repeat([[1] * 40 + [2] * 57 + [3] * 43 + [0] * 10], 2, axis=0)
    branches = np.zeros_like(segments)
    branches[:, 60:80], branches[:, 80:97] = 1, 2
    mask = self_mask(jnp.asarray(segments), jnp.asarray(branches))
    d_out = jnp.ones(q.shape)
    before = flash_of(like)(q, k, v, mask, d_out)
    changed = jnp.asarray(segments == 2)[..., None, None]
    after = flash_of(like)(q, *(jnp.where(changed, 100 * x + 7, x) for x in (k, v)), mask,
                           jnp.where(changed, -3.0, d_out))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(np.asarray(a)[segments != 2], np.asarray(b)[segments != 2])
    assert not np.array_equal(before[0], after[0])
    # The second branch changes: trunk and first branch do not see it.
    changed = jnp.asarray(branches == 2)[..., None, None]
    after = flash_of(like)(q, *(jnp.where(changed, 100 * x + 7, x) for x in (k, v)), mask, d_out)
    np.testing.assert_array_equal(np.asarray(before[0])[branches != 2], np.asarray(after[0])[branches != 2])


@pytest.mark.parametrize("like", SMALL)
def test_flash_through_a_cache_and_without_a_mask(like):
    """Fewer queries than keys, keys in any order; and vision, where everything is visible."""
    q, k, v = qkv(6, 2, 40, 170, 2, 1, 16)
    rng = np.random.default_rng(6)
    index = np.stack([rng.permutation(170), np.arange(170)])
    mask = Mask(jnp.ones((2, 40), int), jnp.asarray(index < [[150], [140]], int), jnp.zeros((2, 40), int),
                jnp.zeros((2, 170), int), jnp.asarray(100 + np.tile(np.arange(40), (2, 1))), jnp.asarray(index))
    for case in (mask, all_visible(2, 40, 170)):
        assert_same(flash_of(like)(q, k, v, case, jnp.ones(q.shape)), reference(q, k, v, case, jnp.ones(q.shape)))


def test_flash_in_bfloat16_is_as_close_as_the_reference():
    q, k, v = qkv(7, 2, 150, 150, 4, 2, 24)
    mask, d_out = random_mask(7, 2, 150), jnp.ones(q.shape)
    exact = reference(q, k, v, mask, d_out)
    short = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    got, plain = flash_of("gpu")(*short, mask, d_out), reference(*short, mask, d_out)
    assert got[0].dtype == jnp.bfloat16
    for a, b, c in zip(got, plain, exact, strict=True):
        assert np.abs(a - c).max() < 1.5 * np.abs(b - c).max() + 0.01


def test_blockwise_is_the_reference():
    q, k, v = qkv(8, 2, 150, 150, 4, 2, 24)
    blocks = with_gradients(functools.partial(blockwise_attention, block=64))
    for mask in (random_mask(8, 2, 150), None):
        assert_same(blocks(q, k, v, mask, jnp.ones(q.shape)), reference(q, k, v, mask, jnp.ones(q.shape)))


@pytest.mark.parametrize(("kv_heads", "sizes", "split_length"), [
    (2, {"data": 2, "fsdp": 2, "tensor": 2}, False),
    (1, {"data": 1, "fsdp": 4, "tensor": 2}, False),   # one key head serves two devices
    (2, {"data": 2, "fsdp": 2, "tensor": 2}, True)])
def test_flash_on_a_mesh(kv_heads, sizes, split_length, monkeypatch):
    if split_length:
        monkeypatch.setitem(rules.MESH_AXES, "batch", ("data",))
        monkeypatch.setitem(rules.MESH_AXES, "length", ("fsdp",))
    q, k, v = qkv(10, 4, 64, 64, 4, kv_heads, 16)
    mask = random_mask(10, 4, 64)
    d_out = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)
    want = reference(q, k, v, mask, d_out)
    run = with_gradients(lambda q, k, v, mask: kernels.flash_attention(q, k, v, *facts(mask), SMALL["gpu"]))
    mesh = make_mesh(**sizes)
    with jax.set_mesh(mesh):
        placed = jax.device_put((q, k, v, mask, d_out), NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        got = run(*placed)
        assert not got[0].sharding.is_fully_replicated
        assert_same(got, want)


def test_tiles_that_are_skipped_hold_nothing_visible():
    for seed in range(8):
        mask = random_mask(seed, 3, 128)
        possible = np.asarray(flash._tile_map(*facts(mask), 16, 32))
        dense = np.asarray(allowed(mask)).reshape(3, 8, 16, 4, 32).any(axis=(2, 4))
        assert (possible | ~dense).all()
        assert not possible[:, 0, 1:].any(), "later tiles are not visited"
        first, behind = np.moveaxis(np.asarray(flash._visited(possible)).reshape(3, 8, 2), -1, 0)
        number = np.arange(4)
        inside = (number >= first[..., None]) & (number < behind[..., None])
        assert (inside | ~possible).all()


def test_choose():
    assert choose("auto", "cpu") == "xla"
    assert choose("auto", "gpu") == choose("auto", "cuda") == choose("auto", "tpu") == "flash"
    assert choose("flash", "cpu") == "flash" and choose("xla", "gpu") == "xla"
    assert choose("auto", "gpu", queries=1) == choose("flash", "tpu", queries=1) == "xla", "generation"
    with pytest.raises(UserError, match=r"flashy.*auto.*flash.*xla"):
        choose("flashy", "gpu")


def test_attention_by_name():
    q, k, v = qkv(11, 2, 20, 20, 4, 2, 16)
    mask = random_mask(11, 2, 20)
    for name in ("auto", "blockwise", "flash"):
        np.testing.assert_allclose(attention(q, k, v, mask, name), xla_attention(q, k, v, mask), atol=2e-6)
        np.testing.assert_allclose(attention(q, k, v, None, name), xla_attention(q, k, v, None), atol=2e-6)
