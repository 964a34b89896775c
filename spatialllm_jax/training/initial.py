"""Where a stage's parameters come from: the stage before, model folders, or random numbers, in that order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from absl import logging

from spatialllm_jax.errors import UserError
from spatialllm_jax.models import store
from spatialllm_jax.models.config import ClipConfig, LlamaConfig, ModelConfig, VisionConfig
from spatialllm_jax.training.partition import Flat, flatten


def gather(abstract: Flat, init: Callable[[jax.Array], Any], key: jax.Array, shardings: Flat, *,
           before: Mapping[str, jax.Array], weights: Mapping[str, store.Weights]) -> dict[str, jax.Array]:
    """All parameters of a model, each with its sharding.

    Args:
        abstract: path -> shape of every parameter the stage's model has.
        init: key -> nested parameters; jitted here, and only what is missing is ever computed.
        before: what earlier stages of this run left.
        weights: path prefix ("vision/dinov2", "llm", "" for all) -> what to start from. Values are cast to the
            model's type, float32: masters of stored bfloat16 would lose small updates.

    Raises:
        UserError: when a folder's shapes differ from the model's, or a prefix matches nothing.
    """
    found: dict[str, jax.Array] = {}
    for path, leaf in before.items():
        if path in abstract:
            found[path] = jax.device_put(leaf, shardings[path])
    store.check_shapes("the stage before", found, {path: abstract[path] for path in found})
    dtypes = {path: leaf.dtype for path, leaf in abstract.items()}
    for prefix, source in weights.items():
        wanted = {path: leaf for path, leaf in abstract.items() if store.under(path, prefix) and "lora_" not in path}
        if not wanted or all(path in found for path in wanted):
            continue
        held = {path: leaf for path, leaf in source.shapes.items()
                if store.under(path, prefix) and (prefix or path in abstract)}
        store.check_shapes(source.where, held, wanted)
        loaded = source.load(prefix, shardings, dtypes, only=[path for path in held if path not in found])
        found.update(loaded)
        types = sorted({str(leaf.dtype) for leaf in held.values()})
        logging.info("%d parameters under %r from %s (%s)", len(loaded), prefix, source.where, ", ".join(types))
    missing = sorted(set(abstract) - set(found))
    if missing:
        logging.info("%d parameters start random, first %s", len(missing), missing[0])

        def fresh(rng: jax.Array) -> Flat:
            values = flatten(init(rng))
            return {path: values[path] for path in missing}

        found.update(jax.jit(fresh, out_shardings={path: shardings[path] for path in missing})(key))
    return {path: found[path] for path in abstract}


def check_prefixes(weights: Iterable[str], known: list[Flat]) -> None:
    """Raises UserError for a prefix that belongs to none of the run's models."""
    for prefix in weights:
        if prefix and not any(path.startswith(prefix) for flat in known for path in flat):
            raise UserError(f"config.weights has a prefix {prefix!r} that no model of this run has parameters under")


# What may differ between weights and the model that starts from them: names, input sizes (positions are
# interpolated), which state is read, how random parameters start.
_FREE = {"name", "image_size", "pretrain_grid", "feature_layer", "feature_norm", "embedding_init", "attention_init"}


def check_configs(weights: Mapping[str, store.Weights], model: ModelConfig) -> None:
    """Raises UserError where weights belong to a model that computes something else, at equal shapes.

    A rotary base or an activation of another model would load without a word and give nonsense.
    """
    for prefix, source in weights.items():
        for path, theirs in _parts(source.config).items():
            ours = _parts(model).get(path)
            if ours is None or not (store.under(path, prefix) or store.under(prefix, path)):
                continue
            for field in dataclasses.fields(theirs):
                a, b = getattr(theirs, field.name), getattr(ours, field.name)
                if type(theirs) is type(ours) and field.name not in _FREE and a != b:
                    raise UserError(f"{source.where} has {field.name} {a} in {path}, the model has {b}; "
                                    "choose another model preset or other weights")


def _parts(config: Any) -> dict[str, Any]:
    """Path -> configuration of every encoder and decoder of a configuration."""
    if isinstance(config, VisionConfig):
        return {f"vision/{config.name}": config}
    if isinstance(config, ClipConfig):
        return _parts(config.vision)
    if isinstance(config, LlamaConfig):
        return {"llm": config}
    if isinstance(config, ModelConfig):
        return {"llm": config.llm, **{f"vision/{encoder.name}": encoder for encoder in config.vision}}
    return {}
