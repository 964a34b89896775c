"""Who sees whom, and the reference back end against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialllm_jax.errors import UserError
from spatialllm_jax.models.attention import BACKENDS, Mask, allowed, attention, self_mask
from spatialllm_jax.models.branches import twig

SEGMENTS = np.array([[1, 1, 1, 1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 2, 2, 2, 3, 0, 0, 0]])
BRANCHES = np.array([[0, 0, 1, 1, 2, 2, 0, 1, 0, 0], [0, 1, 2, 0, 0, 1, 0, 0, 0, 0]])


def by_loop(q, k, v, visible):
    """One query, one head, one key at a time, in float64."""
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(q.shape[:3]):
        keys = np.flatnonzero(visible[b, t])
        if len(keys):
            scores = np.array([q[b, t, h] @ k[b, s, h // group] for s in keys]) / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            out[b, t, h] = (weights / weights.sum()) @ v[b, keys, h // group]
    return out


def qkv(kv_heads=2, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(2, 10, heads, 8)) for heads in (4, kv_heads, kv_heads))


def test_allowed_by_the_definition():
    got = np.asarray(allowed(self_mask(jnp.asarray(SEGMENTS), jnp.asarray(BRANCHES))))
    for b, t, s in np.ndindex(got.shape):
        same = SEGMENTS[b, t] == SEGMENTS[b, s] > 0
        branch = BRANCHES[b, s] in (0, BRANCHES[b, t])
        assert got[b, t, s] == (same and branch and s <= t), (b, t, s)


def test_a_branch_of_a_branch_sees_both_and_the_trunk():
    """Its twin on the same branch, and whatever hangs on another, it does not."""
    numbers = np.array([0, 1, twig(1, 1), twig(1, 2), 2, twig(2, 1), twig(1, 1)])
    got = np.asarray(allowed(self_mask(jnp.ones((1, 7), int), jnp.asarray(numbers[None]))))[0]
    seen = {0: {0}, 1: {0, 1}, 2: {0, 1, 2}, 3: {0, 1, 3}, 4: {0, 4}, 5: {0, 4, 5}, 6: {0, 1, 2, 6}}
    assert {query: set(np.flatnonzero(row)) for query, row in enumerate(got)} == seen


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_against_a_loop(backend, kv_heads):
    q, k, v = qkv(kv_heads)
    mask = self_mask(jnp.asarray(SEGMENTS), jnp.asarray(BRANCHES))
    got = attention(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), mask, backend)
    np.testing.assert_allclose(got, by_loop(q, k, v, np.asarray(allowed(mask))), atol=1e-5)
    everything = attention(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), None, backend)
    np.testing.assert_allclose(everything, by_loop(q, k, v, np.ones((2, 10, 10), bool)), atol=1e-5)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_padding_gives_zeros_and_finite_gradients(backend):
    q, k, v = (jnp.asarray(x, jnp.float32) for x in qkv())
    mask = self_mask(jnp.asarray(SEGMENTS))
    out = attention(q, k, v, mask, backend)
    assert not np.asarray(out)[SEGMENTS == 0].any() and np.asarray(out)[SEGMENTS > 0].any()
    grads = jax.grad(lambda *x: (attention(*x, mask, backend) ** 2).sum(), argnums=(0, 1, 2))(q, k, v)
    assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("length", [257, 400])
def test_blocks_of_rows_are_the_reference(length):
    rng = np.random.default_rng(length)
    q, k, v = (jnp.asarray(rng.normal(size=(2, length, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    segments = np.sort(rng.integers(1, 4, (2, length)))
    segments[0, -30:] = 0
    mask = self_mask(jnp.asarray(segments), jnp.asarray(rng.integers(0, 3, (2, length))))

    def squares(q, k, v, in_order):
        out = attention(q, k, v, mask, in_order=in_order)
        return (out**2).sum(), out

    (got, grads), (want, plain) = (
        jax.jit(jax.value_and_grad(squares, argnums=(0, 1, 2), has_aux=True), static_argnums=3)(q, k, v, in_order)
        for in_order in (True, False))
    np.testing.assert_allclose(got[1], want[1], atol=2e-6)
    for ours, theirs in zip(grads, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    # Pairs that are not computed are what the blocks are for: the program's own count of operations says so.
    flops = [jax.jit(lambda *x, in_order=in_order: attention(*x, mask, in_order=in_order)).lower(
        q, k, v).compile().cost_analysis()["flops"] for in_order in (True, False)]
    assert flops[0] < 0.75 * flops[1], flops


def test_blocks_behind_what_a_cache_holds():
    """Queries that are the last of a row, and what stands before them partly nobody's."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, n, heads, 8)), jnp.float32)
               for n, heads in ((300, 4), (390, 2), (390, 2)))
    whole = self_mask(jnp.asarray(rng.random((2, 390)) < 0.9, int), jnp.asarray(rng.integers(0, 3, (2, 390))))
    mask = whole._replace(q_segment=whole.q_segment[:, 90:], q_branch=whole.q_branch[:, 90:],
                          q_index=whole.q_index[:, 90:])
    run = jax.jit(lambda in_order: attention(q, k, v, mask, in_order=in_order), static_argnums=0)
    np.testing.assert_allclose(run(True), run(False), atol=2e-6)
    flops = [run.lower(in_order).compile().cost_analysis()["flops"] for in_order in (True, False)]
    assert flops[0] < 0.8 * flops[1], flops


def test_causality_goes_by_index_not_by_order_of_keys():
    q, k, v = (jnp.asarray(x, jnp.float32) for x in qkv())
    order = np.random.default_rng(3).permutation(10)
    plain = self_mask(jnp.asarray(SEGMENTS), jnp.asarray(BRANCHES))
    shuffled = plain._replace(kv_segment=plain.kv_segment[:, order], kv_branch=plain.kv_branch[:, order],
                              kv_index=plain.kv_index[:, order])
    assert isinstance(shuffled, Mask)
    np.testing.assert_allclose(attention(q, k[:, order], v[:, order], shuffled), attention(q, k, v, plain), atol=1e-6)


def test_unknown_backend_is_named():
    q = jnp.zeros((1, 1, 1, 2))
    with pytest.raises(UserError, match=r"flashy.*xla"):
        attention(q, q, q, None, "flashy")
