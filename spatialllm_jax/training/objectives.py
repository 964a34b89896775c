"""What is minimised: next-token prediction (stages 0-2), patch words (stage 1) and image-text contrast (stage 0).

Every objective returns *sums* and the weight they are to be divided by, so that accumulation over
micro-batches and means over devices weigh every supervised token the same. (LLaVA averages per-device
means, which weighs tokens by the company they keep; docs/recipes.md.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from spatialllm_jax.data.batch import Batch
from spatialllm_jax.models.clip_text import CLIP
from spatialllm_jax.models.spatialllm import SpatialLLM
from spatialllm_jax.parallel.rules import MESH_AXES

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
        patch_weight: weight of a visual token's words (`patch_sums`) next to a supervised token's 1; 0 leaves
            them out. Their sums come after those of the sources.
    """

    model: SpatialLLM
    num_sources: int = 1
    chunk: int = 256
    patch_weight: float = 0.0

    def __call__(self, params: Any, batch: Batch, rng: jax.Array):
        def run(method: str | None) -> Any:
            return self.model.apply(
                {"params": params}, batch.tokens, batch.positions, batch.segment_ids, batch.branch_ids,
                batch.image_index, images=batch.images, features=batch.features, image_mask=batch.image_mask,
                deterministic=False, rngs={"dropout": rng}, method=method)

        if self.patch_weight == 0 or batch.patch_targets is None:
            return token_sums(self.model, params, run(None), batch, self.num_sources, self.chunk)
        hidden, patches = run("with_patches")
        loss, weight, sums = token_sums(self.model, params, hidden, batch, self.num_sources, self.chunk)
        patch_loss, patch_weight, patch = patch_sums(self.model, params, patches, batch.patch_targets, self.chunk)
        scale = self.patch_weight
        return loss + scale * patch_loss, weight + scale * patch_weight, \
            jax.tree.map(lambda a, b: jnp.concatenate([a, b]), sums, patch)


@dataclasses.dataclass(frozen=True)
class PatchWords:
    """The words of the visual tokens alone: trains the connector and the embeddings, and runs no layer."""

    model: SpatialLLM
    chunk: int = 256

    def __call__(self, params: Any, batch: Batch, rng: jax.Array):
        assert batch.patch_targets is not None
        patches: Any = self.model.apply(
            {"params": params}, images=batch.images, features=batch.features, image_mask=batch.image_mask,
            deterministic=False, rngs={"dropout": rng}, method="read_patches")
        return patch_sums(self.model, params, patches, batch.patch_targets, self.chunk)


def patch_sums(model: SpatialLLM, params: Any, patches: Float[Array, "B P D"], targets: Int[Array, "B P W"],
               chunk: int):
    """(loss sum, weight, metric sums `[1]`) of visual tokens against the words that describe them.

    The loss of a token is the mean of -log p(word) over its words: the cross-entropy against a bag of words.
    Tokens without words weigh nothing. "right" counts tokens whose likeliest word is one of theirs.
    """

    def one(h, wanted):
        logits = model.apply({"params": params}, h, method="logits")
        valid = wanted >= 0
        picked = jnp.take_along_axis(logits, jnp.maximum(wanted, 0), axis=-1)
        count = valid.sum(-1)
        mean = (picked * valid).sum(-1) / jnp.maximum(count, 1)
        losses = jnp.where(count > 0, jax.nn.logsumexp(logits, axis=-1) - mean, 0.0)
        right = (logits.argmax(-1)[..., None] == wanted).any(-1)
        return jnp.stack([losses.sum(), (count > 0).sum().astype(jnp.float32), right.sum().astype(jnp.float32)])

    loss, weight, right = _over_chunks(one, (patches, targets), chunk, (0, -1))
    return loss, weight, {"loss": loss[None], "weight": weight[None], "right": right[None]}


def _over_chunks(one: Callable[..., jax.Array], parts: tuple[jax.Array, ...], chunk: int,
                 fill: tuple[int, ...], wanted: Callable[[Any], jax.Array] = lambda part: jnp.array(True)) -> jax.Array:
    """Sums `one(*parts)` over chunks of positions (axis 1 of every part), each recomputed in the backward pass.

    Args:
        fill: what each part is padded with to a whole number of chunks.
        wanted: whether a chunk counts; others are not computed.
    """
    length = parts[0].shape[1]
    chunk = min(chunk, length)
    pad = -length % chunk

    def chunks(x: jax.Array, value: int) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2), constant_values=value)
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    split = tuple(chunks(x, value) for x, value in zip(parts, fill, strict=True))
    shape = jax.eval_shape(one, *(x[0] for x in split))

    # Recomputed inside the branch: what a conditional hands to the backward pass loses its sharding, and with logits
    # among it every device gathered everybody's, and made the head's gradient for all of them. And outside of it: what
    # a conditional keeps, the loop would stack, down to a copy of the head for every chunk. (Seen with `launch.plan`.)
    again = jax.checkpoint(one)

    @jax.checkpoint
    def add(carry, part):
        return jax.lax.cond(wanted(part), lambda: carry + again(*part), lambda: carry), None

    return jax.lax.scan(add, jnp.zeros(shape.shape, shape.dtype), split)[0]


def token_sums(model: SpatialLLM, params: Any, hidden: Float[Array, "B T D"], batch: Batch,
               num_sources: int, chunk: int):
    """(loss sum, weight, metric sums per source) of hidden states against `batch.targets`.

    Supervised positions are few (answers, not questions or patches): they are moved to the front of every row,
    and chunks without any are skipped, whatever the share of them.
    """
    order = jnp.argsort(batch.loss_weights == 0, axis=-1, stable=True)

    def front(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)

    def one(h, targets, weights, sources):
        logits = model.apply({"params": params}, h, method="logits")
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets) * weights
        right = (logits.argmax(-1) == targets) * weights
        by_source = jax.nn.one_hot(sources, num_sources, dtype=jnp.float32)
        return jnp.stack([jnp.einsum("bt,bts->s", x, by_source) for x in (losses, weights, right)])

    parts = (front(hidden), front(batch.targets), front(batch.loss_weights), front(batch.source_ids))
    loss, weight, right = _over_chunks(one, parts, chunk, (0, 0, 0, 0), lambda part: (part[2] != 0).any())
    return loss.sum(), weight.sum(), {"loss": loss, "weight": weight, "right": right}


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """CLIP's symmetric cross-entropy over the global batch, captions against images.

    Rows with the same caption are positives of each other: templated texts repeat within a batch, and
    calling them negatives would teach the tower to tell equal things apart. The target distribution is
    uniform over the equal captions.

    Attributes:
        model: both towers.
        chunk: rows of the [B, B] logits that a device holds at a time (`contrastive_sums`); 0 holds them all, for
            batches of a few hundred.
    """

    model: CLIP
    chunk: int = 0

    def __call__(self, params: Any, batch: Batch, rng: jax.Array):
        valid = batch.segment_ids == 1
        end = jnp.maximum(valid.sum(-1) - 1, 0)
        assert batch.images is not None
        out: Any = self.model.apply(
            {"params": params}, batch.images[:, 0], batch.tokens * valid, end, deterministic=False,
            rngs={"dropout": rng})
        image, text, scale = out
        count = jnp.float32(image.shape[0])
        if self.chunk:
            loss, found = contrastive_sums(image, text, scale, batch.tokens * valid, self.chunk)
            return loss, count, {"loss": loss[None], "weight": count[None], "right": found[None]}
        logits = scale * jnp.einsum("id,jd->ij", image, text)
        tokens = batch.tokens * valid
        same = (tokens[:, None] == tokens[None]).all(-1).astype(jnp.float32)
        target = same / same.sum(-1, keepdims=True)
        rows = (optax.softmax_cross_entropy(logits, target) + optax.softmax_cross_entropy(logits.T, target)) / 2
        right = jnp.take_along_axis(same, logits.argmax(-1)[:, None], axis=-1)[:, 0]
        sums = {"loss": rows.sum()[None], "weight": count[None], "right": right.sum()[None]}
        return rows.sum(), count, sums


def contrastive_sums(image: Float[Array, "B E"], text: Float[Array, "B E"], scale: Float[Array, ""],
                     captions: Int[Array, "B T"], chunk: int) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(loss sum, rows whose likeliest caption is theirs) of `Contrastive`, without the [B, B] logits.

    Every device compares its own images with all texts and its own texts with all images, `chunk` rows at a time,
    and makes them again in the backward pass: its memory is that of [chunk, B] logits and two [B, E] embeddings, and
    only the latter (and the token ids) travel. (OpenCLIP calls this the local loss with gathered gradients.)

    Args:
        captions: token ids, 0 in the padding; equal rows are positives of each other.
    """
    one_device = functools.partial(_own_rows, chunk=chunk)
    if jax.sharding.get_abstract_mesh().empty:
        return one_device(image, text, scale, captions, axes=())
    axes = MESH_AXES["batch"]
    rows, whole = PartitionSpec(axes), PartitionSpec()
    return jax.shard_map(functools.partial(one_device, axes=axes), in_specs=(rows, rows, whole, rows),
                         out_specs=(whole, whole))(image, text, scale, captions)


def _own_rows(image: Array, text: Array, scale: Array, captions: Array, *, chunk: int, axes: tuple[str, ...],
              ) -> tuple[Array, Array]:
    """`contrastive_sums` of one device's rows against everybody's, added up over the mesh's `axes`."""
    def everybodys(x: Array) -> Array:
        return jax.lax.all_gather(x, axes, tiled=True) if axes else x

    images, texts, every = everybodys(image), everybodys(text), everybodys(captions)
    # Captions are told apart by the first row that holds them, found row by row: nothing of [B, B, T] or [chunk, B, T].
    number = jax.lax.map(lambda caption: (every == caption).all(-1).argmax(), captions)
    numbers = everybodys(number)

    @jax.checkpoint
    def one(row: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        own_image, own_text, own_number = row
        same = numbers == own_number
        logits = scale * jnp.stack([texts @ own_image, images @ own_text])
        losses = jax.nn.logsumexp(logits, axis=-1) - jnp.where(same, logits, 0.0).sum(-1) / same.sum()
        return losses.mean(), same[logits[0].argmax()].astype(jnp.float32)

    losses, right = jax.lax.map(one, (image, text, number), batch_size=chunk)
    total = losses.sum(), right.sum()
    return jax.lax.psum(total, axes) if axes else total
