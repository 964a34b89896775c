"""Options scored by their likelihood, all those of a picture in one forward pass."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spatialllm_jax.models.attention import self_mask
from spatialllm_jax.models.spatialllm import SpatialLLM


def shares(scores: Float[np.ndarray, O]) -> Float[np.ndarray, O]:
    """Of the options' log-likelihoods: the probability of each, given that one of them is the answer."""
    likelihoods = np.exp(scores - scores.max())
    found: np.ndarray = likelihoods / likelihoods.sum()
    return found


@functools.partial(jax.jit, static_argnames=("model", "options", "chunk"))
def option_scores(model: SpatialLLM, params: Any, tokens: Int[Array, "B T"], positions: Int[Array, "B T"],
                  segment_ids: Int[Array, "B T"], branch_ids: Int[Array, "B T"],
                  image_index: Int[Array, "B T"], targets: Int[Array, "B T"], owner_ids: Int[Array, "B T"],
                  visual: Float[Array, "B V D"], *, options: int, chunk: int = 64,
                  ) -> tuple[Float[Array, "B options"], Int[Array, "B options"]]:
    """Log-likelihood of each option, its end mark included, and how many of its tokens are not the likeliest where they
    stand: entry k belongs to owner k + 1; see `options.ScoringRow`.

    One forward pass scores every option of every question on a picture; branches cannot see each other, so
    the scores are those of separate rows.
    """
    hidden: Any = model.apply({"params": params}, tokens, positions, segment_ids, branch_ids, image_index, visual,
                         method=_read)
    pad = -tokens.shape[1] % chunk

    def chunks(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    def one(carry: tuple[Array, Array], part: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
        scores, unlikely = carry
        h, target, owner = part
        logits: Any = model.apply({"params": params}, h, method="logits")
        logp = jax.nn.log_softmax(logits, axis=-1)
        values = jnp.take_along_axis(logp, target[..., None], axis=-1)[..., 0]
        whose = jax.nn.one_hot(owner - 1, options)
        others = (logits.argmax(-1) != target).astype(jnp.int32)
        unlikely += jnp.einsum("bt,btk->bk", others, whose.astype(jnp.int32))
        return (scores + jnp.einsum("bt,btk->bk", values, whose), unlikely), None

    parts = tuple(chunks(x) for x in (hidden, targets, owner_ids))
    size = tokens.shape[0], options
    return jax.lax.scan(one, (jnp.zeros(size), jnp.zeros(size, jnp.int32)), parts)[0]


def _read(module: SpatialLLM, tokens: Array, positions: Array, segment_ids: Array, branch_ids: Array,
          image_index: Array, visual: Array) -> Array:
    embeddings = module.embed(tokens, visual, image_index)
    return module.llm(embeddings, positions, self_mask(segment_ids, branch_ids))[0]
