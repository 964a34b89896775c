"""Schedules and AdamW, as LLaVA-v1.5 uses them (docs/recipes.md) with what other recipes need as options."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from spatialllm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Attributes:
        learning_rate: peak.
        schedule: "cosine" to zero (LLaVA), "hold_linear" (constant for `hold` of the steps, then linear to
            zero), or "constant".
        warmup: share of the steps, rounded up, that rise linearly from zero.
        clip: global gradient norm, 0 for none (LLaVA clips nothing; Prismatic clips at 1).
        weight_decay: applies to kernels and embeddings only.
        scales: regular expression of parameter path -> factor on the learning rate.
        moment_dtype: of the first moment; "bfloat16" saves two bytes per trainable parameter.
    """

    learning_rate: float
    schedule: str = "cosine"
    warmup: float = 0.03
    hold: float = 0.5
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 0.0
    scales: Mapping[str, float] = dataclasses.field(default_factory=dict)
    moment_dtype: str = "float32"


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Step -> learning rate over `steps` updates."""
    warmup = math.ceil(config.warmup * steps)
    rest = max(steps - warmup, 1)
    peak = config.learning_rate
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest)
    elif config.schedule == "hold_linear":
        held = min(int(config.hold * steps), rest - 1)
        after = optax.linear_schedule(peak, 0.0, rest - held, held)
    elif config.schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        raise UserError(f"unknown schedule {config.schedule!r}; choose cosine, hold_linear or constant")
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), after], [warmup])


def _decays(path: str) -> bool:
    return path.rsplit("/", 1)[-1] in ("kernel", "embedding", "lora_a", "lora_b")


def _scale_by_path(scales: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the update of every parameter by the factor of the first expression that matches its path."""
    patterns = [(re.compile(pattern), factor) for pattern, factor in scales.items()]

    def factor(path: str) -> float:
        return next((value for pattern, value in patterns if pattern.match(path)), 1.0)

    def update(updates, state, params=None):
        del params
        return {path: leaf * factor(path) for path, leaf in updates.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def build(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer over flat parameters {path: array} (`training.partition`)."""
    parts = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    parts.append(optax.adamw(
        schedule(config, steps), b1=config.b1, b2=config.b2, eps=config.eps,
        weight_decay=config.weight_decay, mask=lambda params: {path: _decays(path) for path in params},
        mu_dtype=jnp.dtype(config.moment_dtype)))
    if config.scales:
        parts.append(_scale_by_path(config.scales))
    return optax.chain(*parts)


def norms(tree: Mapping[str, jax.Array]) -> jax.Array:
    """Global L2 norm of a flat tree."""
    return optax.tree.norm(tree)
