"""Where a stage's parameters come from: the stage before, model folders, or random numbers, in that order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from spatialllm_jax.errors import UserError
from spatialllm_jax.models import store
from spatialllm_jax.training.partition import Flat, flatten


def gather(abstract: Flat, init: Callable[[jax.Array], Any], key: jax.Array, shardings: Flat, *,
           before: Mapping[str, jax.Array], weights: Mapping[str, str]) -> dict[str, jax.Array]:
    """All parameters of a model, each with its sharding.

    Args:
        abstract: path -> shape of every parameter the stage's model has.
        init: key -> nested parameters; jitted here, and only what is missing is ever computed.
        before: what earlier stages of this run left.
        weights: path prefix ("vision/dinov2", "llm", "" for all) -> model folder to start from.

    Raises:
        UserError: when a folder's shapes differ from the model's, or a prefix matches nothing.
    """
    found: dict[str, jax.Array] = {}
    for path, leaf in before.items():
        if path in abstract:
            found[path] = jax.device_put(leaf, shardings[path])
    store.check_shapes("the stage before", found, {path: abstract[path] for path in found})
    for prefix, folder in weights.items():
        wanted = {path: leaf for path, leaf in abstract.items()
                  if (not prefix or path == prefix or path.startswith(prefix.rstrip("/") + "/"))
                  and "lora_" not in path}
        if not wanted or all(path in found for path in wanted):
            continue
        loaded = store.load_params(folder, prefix, shardings)
        loaded = {path: leaf for path, leaf in loaded.items() if prefix or path in abstract}
        store.check_shapes(folder, loaded, wanted)
        found.update({path: leaf for path, leaf in loaded.items() if path not in found})
        logging.info("%d parameters under %r from %s", len(loaded), prefix, folder)
    missing = sorted(set(abstract) - set(found))
    if missing:
        logging.info("%d parameters start random, first %s", len(missing), missing[0])

        def fresh(rng: jax.Array) -> Flat:
            values = flatten(init(rng))
            return {path: values[path] for path in missing}

        found.update(jax.jit(fresh, out_shardings={path: shardings[path] for path in missing})(key))
    return {path: found[path] for path in abstract}


def check_prefixes(weights: Mapping[str, str], known: list[Flat]) -> None:
    """Raises UserError for a prefix that belongs to none of the run's models."""
    for prefix in weights:
        if prefix and not any(path.startswith(prefix) for flat in known for path in flat):
            raise UserError(f"config.weights has a prefix {prefix!r} that no model of this run has parameters under")
