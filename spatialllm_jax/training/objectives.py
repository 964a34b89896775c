"""What is minimised: next-token prediction (stages 0-2) and image-text contrast (stage 0).

Every objective returns *sums* and the weight they are to be divided by, so that accumulation over
micro-batches and means over devices weigh every supervised token the same. (LLaVA averages per-device
means, which weighs tokens by the company they keep; docs/recipes.md.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from spatialllm_jax.data.batch import Batch
from spatialllm_jax.models.clip_text import CLIP
from spatialllm_jax.models.spatialllm import SpatialLLM

# (params, batch, rng) -> (loss sum, weight, sums for the metrics)
Objective = Callable[[Any, Batch, jax.Array], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Cross-entropy over supervised tokens, computed in chunks of positions.

    Logits exist for `chunk` positions of every row at a time and are recomputed in the backward pass, so
    memory does not grow with T x vocabulary.

    Attributes:
        model: the model.
        num_sources: number of data sources, for per-source sums.
        chunk: positions per chunk.
    """

    model: SpatialLLM
    num_sources: int = 1
    chunk: int = 256

    def __call__(self, params: Any, batch: Batch, rng: jax.Array):
        hidden: Any = self.model.apply(
            {"params": params}, batch.tokens, batch.positions, batch.segment_ids, batch.branch_ids,
            batch.image_index, images=batch.images, features=batch.features, image_mask=batch.image_mask,
            deterministic=False, rngs={"dropout": rng})
        return token_sums(self.model, params, hidden, batch, self.num_sources, self.chunk)


def token_sums(model: SpatialLLM, params: Any, hidden: Float[Array, "B T D"], batch: Batch,
               num_sources: int, chunk: int):
    """(loss sum, weight, metric sums per source) of hidden states against `batch.targets`."""
    length = hidden.shape[1]
    chunk = min(chunk, length)
    pad = -length % chunk

    def chunks(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    @jax.checkpoint
    def one(carry, part):
        h, targets, weights, sources = part
        logits = model.apply({"params": params}, h, method="logits").astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets) * weights
        right = (logits.argmax(-1) == targets) * weights
        by_source = jax.nn.one_hot(sources, num_sources, dtype=jnp.float32)
        sums = jnp.stack([jnp.einsum("bt,bts->s", x, by_source) for x in (losses, weights, right)])
        return carry + sums, None

    parts = tuple(chunks(x) for x in (hidden, batch.targets, batch.loss_weights, batch.source_ids))
    sums, _ = jax.lax.scan(one, jnp.zeros((3, num_sources), jnp.float32), parts)
    loss, weight, right = sums
    return loss.sum(), weight.sum(), {"loss": loss, "weight": weight, "right": right}


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """CLIP's symmetric cross-entropy over the global batch, captions against images.

    Rows with the same caption are positives of each other: templated texts repeat within a batch, and
    calling them negatives would teach the tower to tell equal things apart. The target distribution is
    uniform over the equal captions.
    """

    model: CLIP

    def __call__(self, params: Any, batch: Batch, rng: jax.Array):
        valid = batch.segment_ids == 1
        end = jnp.maximum(valid.sum(-1) - 1, 0)
        assert batch.images is not None
        out: Any = self.model.apply(
            {"params": params}, batch.images[:, 0], batch.tokens * valid, end, deterministic=False,
            rngs={"dropout": rng})
        image, text, scale = out
        logits = scale * jnp.einsum("id,jd->ij", image, text)
        tokens = batch.tokens * valid
        same = (tokens[:, None] == tokens[None]).all(-1).astype(jnp.float32)
        target = same / same.sum(-1, keepdims=True)
        rows = (optax.softmax_cross_entropy(logits, target) + optax.softmax_cross_entropy(logits.T, target)) / 2
        right = jnp.take_along_axis(same, logits.argmax(-1)[:, None], axis=-1)[:, 0]
        count = jnp.float32(rows.shape[0])
        sums = {"loss": rows.sum()[None], "weight": count[None], "right": right.sum()[None]}
        return rows.sum(), count, sums
