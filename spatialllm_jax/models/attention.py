"""Attention over packed, branching rows: who may see whom, and the back ends that compute it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from spatialllm_jax.errors import UserError

_FLOOR = -1e30


class Mask(NamedTuple):
    """Which of S keys each of T queries sees, as facts per token; no `[T, S]` array until a back end wants it.

    A query sees a key when both belong to the same sample, the key lies on the shared trunk or on the
    query's own branch, and the key does not come later in the row. "Later" is by row index, never by rotary
    position: branches restart their positions (see `data.batch`).

    Attributes:
        q_segment, kv_segment: sample within the row, from 1; 0 is padding and sees and is seen by nothing.
        q_branch, kv_branch: 0 for the trunk, k > 0 for the k-th branch.
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
    kv_branch = mask.kv_branch[:, None, :]
    same_branch = (kv_branch == 0) | (kv_branch == mask.q_branch[:, :, None])
    not_later = mask.kv_index[:, None, :] <= mask.q_index[:, :, None]
    return same_segment & same_branch & not_later


def xla_attention(
    q: Float[Array, "B T H D"], k: Float[Array, "B S K D"], v: Float[Array, "B S K D"], mask: Mask | None,
) -> Float[Array, "B T H D"]:
    """The reference: scores and softmax in float32, everything materialised."""
    q = rearrange(q, "b t (k g) d -> b t k g d", k=k.shape[2]) * q.shape[-1] ** -0.5
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        # A finite floor instead of -inf keeps rows that see nothing (padding) free of NaN, forward and
        # backward. Adding it costs one pass over the scores where selecting costs two and a saved mask.
        visible = allowed(mask)
        scores = scores + jnp.where(visible, 0.0, _FLOOR)[:, None, None]
    # Normalised after the product with v: one pass over [T, D] instead of [T, S].
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = jnp.einsum("bkgts,bskd->btkgd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = out / rearrange(weights.sum(axis=-1), "b k g t -> b t k g 1")
    if mask is not None:
        out = jnp.where(visible.any(axis=-1)[:, :, None, None, None], out, 0.0)
    return rearrange(out, "b t k g d -> b t (k g) d").astype(v.dtype)


Backend = Callable[[Array, Array, Array, Mask | None], Array]
BACKENDS: dict[str, Backend] = {"xla": xla_attention}


def attention(
    q: Float[Array, "B T H D"], k: Float[Array, "B S K D"], v: Float[Array, "B S K D"],
    mask: Mask | None = None, implementation: str = "xla",
) -> Float[Array, "B T H D"]:
    """Scaled dot-product attention; K key/value heads each serve H / K query heads.

    Args:
        mask: None lets every query see every key (vision).
        implementation: a key of `BACKENDS`.

    Returns:
        Zeros for queries that see no key.

    Raises:
        UserError: the back end is not known.
    """
    if implementation not in BACKENDS:
        raise UserError(f"attention {implementation!r} is not known; choose one of {', '.join(sorted(BACKENDS))}")
    return BACKENDS[implementation](q, k, v, mask)
