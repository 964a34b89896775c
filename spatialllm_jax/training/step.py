"""The jitted training step: one program, donated state, no host round trip."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from spatialllm_jax.data.batch import Batch
from spatialllm_jax.training import partition
from spatialllm_jax.training.objectives import Objective


@flax.struct.dataclass
class TrainState:
    """Everything a step reads and writes.

    Attributes:
        step: updates done, skipped ones included.
        trainable, frozen: flat parameters {path: array}.
        opt_state: moments of the trainable ones only.
        rng: base key; the key of a step is folded from it.
        skipped: steps whose loss or gradients were not finite and changed nothing.
    """

    step: jax.Array
    trainable: dict[str, jax.Array]
    frozen: dict[str, jax.Array]
    opt_state: Any
    rng: jax.Array
    skipped: jax.Array

    def params(self) -> dict[str, Any]:
        """The nested parameter tree."""
        return partition.unflatten({**self.frozen, **self.trainable})


def init_state(trainable: dict[str, jax.Array], frozen: dict[str, jax.Array],
               optimizer: optax.GradientTransformation, rng: jax.Array) -> TrainState:
    """A state at step 0. Pure, so that it can be traced, evaluated abstractly and sharded."""
    return TrainState(jnp.int32(0), trainable, frozen, optimizer.init(trainable), rng, jnp.int32(0))


def make_step(objective: Objective, optimizer: optax.GradientTransformation, accumulate: int = 1,
              clamp: dict[str, tuple[float, float]] | None = None,
              counts: Callable[[Any], dict[str, jax.Array]] | None = None) -> Callable:
    """`(state, batch) -> (state, metrics)`, to be jitted with the state donated.

    Args:
        accumulate: micro-batches per update; gradients are summed and divided by the total weight, so the
            update equals that of the whole batch.
        clamp: parameter path -> (low, high) applied after each update (CLIP's logit scale).
        counts: what a batch holds, for the metrics; `batch_counts` where it is a `Batch`.

    A step whose loss or gradient norm is not finite leaves parameters and moments as they were and is
    counted in `state.skipped`.
    """

    def sums(trainable, frozen, batch, rng):
        loss, weight, metrics = objective(partition.unflatten({**frozen, **trainable}), batch, rng)
        return loss, (weight, metrics)

    gradient = jax.value_and_grad(sums, has_aux=True)

    def over_micro_batches(state: TrainState, batch: Batch, rng: jax.Array):
        if accumulate == 1:
            (loss, (weight, metrics)), grads = gradient(state.trainable, state.frozen, batch, rng)
            return loss, weight, metrics, grads
        # Strided, so that every micro-batch stays spread over the devices that hold the batch.
        micro = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch)

        def one(carry, part):
            index, piece = part
            (loss, (weight, metrics)), grads = gradient(
                state.trainable, state.frozen, piece, jax.random.fold_in(rng, index))
            return jax.tree.map(jnp.add, carry, (loss, weight, metrics, grads)), None

        first = jax.tree.map(lambda x: x[0], micro)
        shapes = jax.eval_shape(gradient, state.trainable, state.frozen, first, rng)
        (loss, (weight, metrics)), grads = shapes
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (loss, weight, metrics, grads))
        return jax.lax.scan(one, zeros, (jnp.arange(accumulate), micro))[0]

    def step(state: TrainState, batch: Batch):
        rng = jax.random.fold_in(state.rng, state.step)
        loss, weight, metrics, grads = over_micro_batches(state, batch, rng)
        scale = 1.0 / jnp.maximum(weight, 1e-6)
        grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        for path, (low, high) in (clamp or {}).items():
            if path in trainable:
                trainable[path] = jnp.clip(trainable[path], low, high)
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        trainable, opt_state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old), (trainable, opt_state),
            (state.trainable, state.opt_state))
        new = dataclasses.replace(
            state, step=state.step + 1, trainable=trainable, opt_state=opt_state,
                            skipped=state.skipped + (~good).astype(jnp.int32))
        return new, {"loss": loss * scale, "weight": weight, "grad_norm": grad_norm, "sources": metrics,
                     "skipped": new.skipped, "finite": good, "param_norm": optax.tree.norm(trainable),
                     "counts": (counts or batch_counts)(batch)}

    return step


def batch_counts(batch: Batch) -> dict[str, jax.Array]:
    """What a batch holds, over all processes: positions that are not padding, samples, real images, positions with
    a loss, and (query, key) pairs that causal attention looks at (a token sees `positions` + 1 keys)."""
    real = batch.segment_ids > 0
    images = jnp.int32(0) if batch.image_mask is None else batch.image_mask.sum()
    return {"positions": real.sum(), "samples": batch.segment_ids.max(-1).sum(), "images": images,
            "supervised": (batch.loss_weights > 0).sum(),
            "pairs": ((batch.positions + 1) * real).astype(jnp.float32).sum()}
