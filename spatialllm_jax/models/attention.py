"""Attention over packed, branching rows: who may see whom, and the back ends that compute it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from spatialllm_jax.errors import UserError
from spatialllm_jax.models.branches import on_path
from spatialllm_jax.parallel.rules import MESH_AXES

_FLOOR = -1e30
_BLOCK = 128    # queries of a block of `row_attention`
OUT, LSE = "attention_out", "attention_lse"  # names for remat policies (`models.stack`)


class Mask(NamedTuple):
    """Which of S keys each of T queries sees, as facts per token; no `[T, S]` array until a back end wants it.

    A query sees a key when both belong to the same sample, the key lies on the shared trunk, on the query's own branch
    or on the one that this springs from, and the key does not come later in the row. "Later" is by row index, never by
    rotary position: branches restart their positions (see `data.batch`).

    Attributes:
        q_segment, kv_segment: sample within the row, from 1; 0 is padding and sees and is seen by nothing.
        q_branch, kv_branch: 0 for the trunk, k > 0 for the k-th branch, `branches.twig(k, n)` for the n-th of its own.
        q_index, kv_index: place in the row (or slot of the cache).
    """

    q_segment: Int[Array, "B T"]
    kv_segment: Int[Array, "B S"]
    q_branch: Int[Array, "B T"]
    kv_branch: Int[Array, "B S"]
    q_index: Int[Array, "B T"]
    kv_index: Int[Array, "B S"]


def self_mask(segment_ids: Int[Array, "B T"], branch_ids: Int[Array, "B T"] | None = None) -> Mask:
    """The mask of rows that attend to themselves, without a cache."""
    branch_ids = jnp.zeros_like(segment_ids) if branch_ids is None else branch_ids
    index = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)
    return Mask(segment_ids, segment_ids, branch_ids, branch_ids, index, index)


def allowed(mask: Mask) -> Bool[Array, "B T S"]:
    """The dense form of `mask`."""
    same_segment = (mask.q_segment[:, :, None] == mask.kv_segment[:, None, :]) & (mask.q_segment[:, :, None] > 0)
    seen_branch = on_path(mask.kv_branch[:, None, :], mask.q_branch[:, :, None])
    not_later = mask.kv_index[:, None, :] <= mask.q_index[:, :, None]
    return same_segment & seen_branch & not_later


def xla_attention(
    q: Float[Array, "B T H D"], k: Float[Array, "B S K D"], v: Float[Array, "B S K D"], mask: Mask | None,
) -> Float[Array, "B T H D"]:
    """The reference: scores and softmax in float32, everything materialised."""
    q = rearrange(q, "b t (k g) d -> b k g t d", k=k.shape[2]) * q.shape[-1] ** -0.5
    # The operand that is named second stands first in what `einsum` computes: so, nothing has to be transposed.
    scores = jnp.einsum("bskd,bkgtd->bkgts", k, q, preferred_element_type=jnp.float32)
    if mask is not None:
        # A finite floor instead of -inf keeps rows that see nothing (padding) free of NaN, forward and
        # backward. Adding it costs one pass over the scores where selecting costs two and a saved mask.
        visible = allowed(mask)
        scores = scores + jnp.where(visible, 0.0, _FLOOR)[:, None, None]
    # Normalised after the product with v: one pass over [T, D] instead of [T, S].
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = jnp.einsum("bskd,bkgts->bkgtd", v, weights.astype(v.dtype), preferred_element_type=jnp.float32)
    out = out / weights.sum(axis=-1, keepdims=True)
    if mask is not None:
        out = jnp.where(visible.any(axis=-1)[:, None, None, :, None], out, 0.0)
    return rearrange(out, "b k g t d -> b t (k g) d").astype(v.dtype)


def row_attention(
    q: Float[Array, "B T H D"], k: Float[Array, "B S K D"], v: Float[Array, "B S K D"], mask: Mask,
) -> Float[Array, "B T H D"]:
    """The reference for the last T of S tokens of a row in its order: `_BLOCK` queries at a time, each block with the
    keys up to its own end. Of the pairs that lie later in the row, and are nobody's, nearly all are never computed."""
    length, before = q.shape[1], k.shape[1] - q.shape[1]
    if length <= 2 * _BLOCK:
        return xla_attention(q, k, v, mask)
    parts = []
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        own, seen = slice(start, end), slice(before + end)
        part = Mask(mask.q_segment[:, own], mask.kv_segment[:, seen], mask.q_branch[:, own], mask.kv_branch[:, seen],
                    mask.q_index[:, own], mask.kv_index[:, seen])
        parts.append(xla_attention(q[:, own], k[:, seen], v[:, seen], part))
    return jnp.concatenate(parts, axis=1)


def blockwise_attention(
    q: Float[Array, "B T H D"], k: Float[Array, "B S K D"], v: Float[Array, "B S K D"], mask: Mask | None,
    block: int = 256,
) -> Float[Array, "B T H D"]:
    """The reference for `block` queries at a time, made again in the backward pass: for long rows on any platform,
    in memory linear in S. Every tile is computed, visible or not."""
    rows, length = q.shape[:2]
    mask = all_visible(rows, length, k.shape[1]) if mask is None else mask
    block = min(block, length)

    def blocks(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, -length % block)] + [(0, 0)] * (x.ndim - 2))
        return rearrange(x, "b (n t) ... -> n b t ...", t=block)

    @jax.checkpoint
    def one(part: tuple[Array, ...]) -> Array:
        query, segment, branch, index = part
        return xla_attention(query, k, v, mask._replace(q_segment=segment, q_branch=branch, q_index=index))

    out = jax.lax.map(one, tuple(blocks(x) for x in (q, mask.q_segment, mask.q_branch, mask.q_index)))
    return rearrange(out, "n b t h d -> b (n t) h d")[:, :length]


def all_visible(rows: int, length: int, slots: int) -> Mask:
    """The mask under which every query sees every key."""
    q, kv = jnp.ones((rows, length), jnp.int32), jnp.ones((rows, slots), jnp.int32)
    return Mask(q, kv, 0 * q, 0 * kv, 0 * q, 0 * kv)


def facts(mask: Mask) -> tuple[Int[Array, "B 3 T"], Int[Array, "B 3 S"]]:
    """What kernels are told of queries and of keys: segment, branch and index."""
    return (jnp.stack([mask.q_segment, mask.q_branch, mask.q_index], axis=1),
            jnp.stack([mask.kv_segment, mask.kv_branch, mask.kv_index], axis=1))


def flash_attention(
    q: Float[Array, "B T H D"], k: Float[Array, "B S K D"], v: Float[Array, "B S K D"], mask: Mask | None,
) -> Float[Array, "B T H D"]:
    """The kernel of `models.flash` in the form of the platform; interpreted on CPUs, which is for tests."""
    from spatialllm_jax.models import flash, kernels  # late: Pallas takes a second to import

    rows = "images" if mask is None else "batch"
    mask = all_visible(q.shape[0], q.shape[1], k.shape[1]) if mask is None else mask
    return kernels.flash_attention(q, k, v, *facts(mask), flash.tiles_for(platform()), rows)


Backend = Callable[[Array, Array, Array, Mask | None], Array]
BACKENDS: dict[str, Backend] = {"xla": xla_attention, "blockwise": blockwise_attention, "flash": flash_attention}
AUTO = "auto"
_KERNELS = ("flash",)
# Below this many queries (generation: one) a kernel's tiles would be mostly empty.
_FEW = 16


def choose(implementation: str, platform: str, queries: int | None = None) -> str:
    """The key of `BACKENDS` that `implementation` stands for.

    Args:
        implementation: "auto", or a key.
        platform: "cpu", "gpu" or "tpu" (also "cuda", "rocm"): the machine that will run the program, which need not
            be the one that compiles it.
        queries: T, when it is known: a few queries are the reference's whatever was asked for.

    Raises:
        UserError: `implementation` is neither.
    """
    if implementation != AUTO and implementation not in BACKENDS:
        raise UserError(f"attention {implementation!r} is not known; choose one of {AUTO}, "
                        f"{', '.join(sorted(BACKENDS))}")
    if implementation == AUTO:
        implementation = {"gpu": "flash", "cuda": "flash", "tpu": "flash"}.get(platform, "xla")
    if implementation in _KERNELS and queries is not None and queries < _FEW:
        return "xla"
    return implementation


def platform() -> str:
    """"cpu", "gpu" or "tpu": that of the mesh's devices, or of this process's where no mesh is set."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def _split_along_rows() -> bool:
    """Whether devices hold pieces of rows, which blocks of queries would cut across."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(mesh.shape.get(axis, 1) > 1 for axis in MESH_AXES["length"])


def attention(
    q: Float[Array, "B T H D"], k: Float[Array, "B S K D"], v: Float[Array, "B S K D"],
    mask: Mask | None = None, implementation: str = "xla", *, in_order: bool = False,
) -> Float[Array, "B T H D"]:
    """Scaled dot-product attention; K key/value heads each serve H / K query heads.

    Args:
        mask: None lets every query see every key (vision).
        implementation: "auto" or a key of `BACKENDS`; see `choose`.
        in_order: keys are the tokens of one row in its order, and queries its last ones: those of a `self_mask`.

    Returns:
        Zeros for queries that see no key.

    Raises:
        UserError: the back end is not known.
    """
    chosen = choose(implementation, platform(), q.shape[1])
    if chosen == "xla" and in_order and mask is not None and not _split_along_rows():
        out = row_attention(q, k, v, mask)
    else:
        out = BACKENDS[chosen](q, k, v, mask)
    # Kernels name it themselves, as their own backward pass takes it.
    return out if chosen in _KERNELS else checkpoint_name(out, OUT)
