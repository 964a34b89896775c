"""Jitted generation: prefill into a key/value cache, then one `while_loop` until every row has stopped."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spatialllm_jax.models.attention import Mask, self_mask
from spatialllm_jax.models.llama import Cache, init_cache
from spatialllm_jax.models.spatialllm import SpatialLLM


class _Loop(NamedTuple):
    step: Int[Array, ""]
    token: Int[Array, B]
    done: Bool[Array, B]
    out: Int[Array, "B N"]
    cache: Cache
    key: jax.Array


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens", "stop", "temperature"))
def generate(model: SpatialLLM, params: Any, tokens: Int[Array, "B P"], lengths: Int[Array, B],
             image_index: Int[Array, "B P"], visual: Float[Array, "B V D"], key: jax.Array, *,
             max_new_tokens: int, stop: tuple[int, ...], temperature: float = 0.0) -> Int[Array, "B N"]:
    """Continues every prompt by up to `max_new_tokens` tokens.

    Args:
        tokens: prompts, padded on the right to a common P.
        lengths: true prompt lengths.
        image_index, visual: which visual token fills each position, -1 for text; see `SpatialLLM.embed`.
        stop: ids that end a row; they are part of the output, everything after them is -1.
        temperature: 0 for greedy.
    """
    rows, width = tokens.shape
    slots = width + max_new_tokens
    slot = jnp.broadcast_to(jnp.arange(slots), (rows, slots))
    zeros = jnp.zeros_like(slot)
    prompt_valid = (slot < lengths[:, None]).astype(jnp.int32)
    stops = jnp.array(stop, jnp.int32)

    def mask(start: Array, queries: int, valid: Array) -> Mask:
        index = jnp.broadcast_to(start + jnp.arange(queries), (rows, queries))
        return Mask(q_segment=jnp.ones_like(index), kv_segment=valid, q_branch=jnp.zeros_like(index),
                    kv_branch=zeros, q_index=index, kv_index=slot)

    def pick(hidden: Array, step: Array, key: jax.Array) -> Array:
        logits: Any = model.apply({"params": params}, hidden, method="logits")
        if temperature == 0.0:
            return logits.argmax(-1).astype(jnp.int32)
        return jax.random.categorical(jax.random.fold_in(key, step), logits / temperature).astype(jnp.int32)

    cache = init_cache(model.config.llm, rows, slots, jnp.dtype(model.config.dtype))
    prefilled: Any = model.apply(
        {"params": params}, tokens, slot[:, :width], mask(jnp.int32(0), width, prompt_valid), cache, 0, visual,
        image_index, method="decode")
    hidden, cache = prefilled
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    first = pick(last, jnp.int32(0), key)
    out = jnp.full((rows, max_new_tokens), -1, jnp.int32).at[:, 0].set(first)

    def unfinished(loop: _Loop) -> Array:
        return (loop.step < max_new_tokens) & ~loop.done.all()

    def advance(loop: _Loop) -> _Loop:
        # The token picked last is written at the slot after those generated before it.
        at = width + loop.step - 1
        valid = prompt_valid | ((slot >= width) & (slot <= at)).astype(jnp.int32)
        decoded: Any = model.apply(
            {"params": params}, loop.token[:, None], (lengths + loop.step - 1)[:, None], mask(at, 1, valid),
            loop.cache, at, method="decode")
        hidden, cache = decoded
        token = pick(hidden[:, 0], loop.step, loop.key)
        out = loop.out.at[:, loop.step].set(jnp.where(loop.done, -1, token))
        return _Loop(loop.step + 1, token, loop.done | jnp.isin(token, stops), out, cache, loop.key)

    return jax.lax.while_loop(
        unfinished, advance,
        _Loop(jnp.int32(1), first, jnp.isin(first, stops), out, cache, key)).out


@functools.partial(jax.jit, static_argnames=("model", "branches", "chunk"))
def option_scores(model: SpatialLLM, params: Any, tokens: Int[Array, "B T"], positions: Int[Array, "B T"],
                  segment_ids: Int[Array, "B T"], branch_ids: Int[Array, "B T"],
                  image_index: Int[Array, "B T"], targets: Int[Array, "B T"],
                  loss_weights: Float[Array, "B T"], visual: Float[Array, "B V D"], *, branches: int,
                  chunk: int = 64) -> Float[Array, "B branches"]:
    """Log-likelihood of each branch's answer, its end mark included: entry k belongs to branch k + 1.

    One forward pass scores every option of every question on a picture; branches cannot see each other, so
    the scores are those of separate rows.
    """
    hidden: Any = model.apply({"params": params}, tokens, positions, segment_ids, branch_ids, image_index, visual,
                         method=_read)
    pad = -tokens.shape[1] % chunk

    def chunks(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    def one(carry: Array, part: tuple[Array, ...]) -> tuple[Array, None]:
        h, target, weight, branch = part
        logits: Any = model.apply({"params": params}, h, method="logits")
        logp = jax.nn.log_softmax(logits, axis=-1)
        values = jnp.take_along_axis(logp, target[..., None], axis=-1)[..., 0] * weight
        return carry + jnp.einsum("bt,btk->bk", values, jax.nn.one_hot(branch - 1, branches)), None

    parts = tuple(chunks(x) for x in (hidden, targets, loss_weights, branch_ids))
    return jax.lax.scan(one, jnp.zeros((tokens.shape[0], branches)), parts)[0]


def _read(module: SpatialLLM, tokens: Array, positions: Array, segment_ids: Array, branch_ids: Array,
          image_index: Array, visual: Array) -> Array:
    embeddings = module.embed(tokens, visual, image_index)
    return module.llm(embeddings, positions, self_mask(segment_ids, branch_ids))[0]
