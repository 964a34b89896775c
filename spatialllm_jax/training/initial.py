"""Where a stage's parameters come from: the stage before, model folders, or random numbers, in that order."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh, NamedSharding

from spatialllm_jax.errors import UserError
from spatialllm_jax.models import store
from spatialllm_jax.models.config import ClipConfig, LlamaConfig, ModelConfig, VisionConfig
from spatialllm_jax.models.quantize import quantized
from spatialllm_jax.parallel.rules import param_shardings
from spatialllm_jax.training.partition import Flat, flatten, unflatten


def gather(abstract: Flat, init: Callable[[jax.Array], Any], key: jax.Array, shardings: Flat, *,
           before: Iterable[store.Weights], weights: Mapping[str, store.Weights], quantize: str = "none",
           only: Collection[str] | None = None) -> dict[str, jax.Array]:
    """All parameters of a model, each with its sharding.

    Args:
        abstract: path -> shape and type of every parameter the stage's model has. The type is float32 for all that
            trains: masters of stored bfloat16 would lose small updates.
        init: key -> nested parameters; jitted here, and only what is missing is ever computed.
        before: what earlier stages of this run left, the last one first.
        weights: path prefix ("vision/dinov2", "llm", "" for all) -> what to start from.
        quantize: "int8" or "int4" turns the kernels of the language model's layers into what `models.quantize` stores
            for them, one by one, so that the whole never lies on the devices at full width.
        only: of these paths alone; default: all.

    Raises:
        UserError: when a folder's shapes differ from the model's, or a prefix matches nothing.
    """
    found: dict[str, jax.Array] = {}
    dtypes = {path: leaf.dtype for path, leaf in abstract.items()}
    asked = set(abstract if only is None else only)
    small = {path for path in asked if quantize != "none" and is_layer_kernel(path)}
    done: set[str] = set()

    def take(source: store.Weights, prefix: str, paths: Collection[str]) -> None:
        paths = [path for path in paths if path in asked and path not in done]
        if whole := [path for path in paths if path not in small]:
            found.update(source.load(prefix, shardings, dtypes, only=whole))
        for path in paths:
            if path in small:
                found.update(_quantized(path, source.load(prefix, shardings, only=[path])[path], shardings, quantize))
        done.update(paths)

    for source in before:
        held = {path: leaf for path, leaf in source.shapes.items() if path in abstract}
        store.check_shapes(source.where, held, {path: abstract[path] for path in held})
        take(source, "", held)
    for prefix, source in weights.items():
        wanted = {path: leaf for path, leaf in abstract.items() if store.under(path, prefix) and "lora_" not in path}
        if all(path in done or path not in asked for path in wanted):
            continue
        held = {path: leaf for path, leaf in source.shapes.items()
                if store.under(path, prefix) and (prefix or path in abstract)}
        store.check_shapes(source.where, held, wanted)
        take(source, prefix, held)
        types = sorted({str(leaf.dtype) for leaf in held.values()})
        logging.info("parameters under %r from %s (%s)", prefix, source.where, ", ".join(types))
    missing = sorted(asked - done)
    if missing:
        logging.info("%d parameters start random, first %s", len(missing), missing[0])

        def fresh(rng: jax.Array) -> Flat:
            values = flatten(init(rng))
            return {path: values[path].astype(dtypes[path]) for path in missing}

        drawn = jax.jit(fresh, out_shardings={path: shardings[path] for path in missing})(key)
        for path, leaf in drawn.items():
            found.update(_quantized(path, leaf, shardings, quantize) if path in small else {path: leaf})
    return {path: leaf for name in abstract if name in asked
            for path, leaf in (_standing_for(name, found) if name in small else {name: found[name]}).items()}


def portions(paths: Iterable[str], sources: Iterable[store.Weights]) -> list[list[str]]:
    """`paths` in the portions in which reading them again takes least: alone what lies on a disk, so that nothing else
    is in memory, and together what is drawn at random, which one program makes."""
    stored = {path for source in sources for path in source.shapes}
    paths = list(paths)
    drawn = [path for path in paths if path not in stored]
    return [[path] for path in paths if path in stored] + ([drawn] if drawn else [])


def is_layer_kernel(path: str) -> bool:
    """Whether `StageConfig.quantize` is for this parameter: a kernel of the language model's layers."""
    return path.startswith("llm/layers/") and path.endswith("/kernel")


def _quantized(path: str, kernel: jax.Array, shardings: Flat, scheme: str) -> dict[str, jax.Array]:
    """What stands for stacked kernels `[layers, in, out]`, layer by layer: one layer's float32 at a time."""
    owner, make = path.removesuffix("kernel"), functools.partial(quantized, scheme=scheme)
    names = jax.eval_shape(lambda x: jax.vmap(make)(x), kernel)
    sharding, out = shardings[path], None
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        flat = {owner + name: leaf for name, leaf in names.items()}
        found = flatten(param_shardings(unflatten(flat), sharding.mesh))
        out = {name: found[owner + name] for name in names}
    stored = jax.jit(lambda x: jax.lax.map(make, x), out_shardings=out)(kernel)
    return {owner + name: leaf for name, leaf in stored.items()}


def _standing_for(path: str, found: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    owner = path.removesuffix("kernel")
    return {name: leaf for name, leaf in found.items() if name.startswith((f"{owner}kernel_", f"{owner}scale_"))}


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
