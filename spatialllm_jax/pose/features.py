"""Tokens of a frozen encoder for crops: the function that makes them, and those of a data set, kept on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from spatialllm_jax.data.features import FeatureStore, build
from spatialllm_jax.models import store
from spatialllm_jax.models.connector import resample, standardized
from spatialllm_jax.models.linear import Params
from spatialllm_jax.models.pose import PoseConfig
from spatialllm_jax.models.vit import ViT, normalize
from spatialllm_jax.pose.objects import PoseObject
from spatialllm_jax.training.features import digest
from spatialllm_jax.training.partition import flatten

CHUNK = 2048    # crops per file: what a kill costs at most


def read_tokens(config: PoseConfig, params: Params, pixels: UInt8[Array, "B S S 3"]) -> Float[Array, "B N C"]:
    """CLS (if read) and the map of every layer, each at mean 0 and variance 1, layers side by side. Pure.

    Args:
        params: of the encoder alone. Only the blocks below the highest layer run.
    """
    encoder, count = config.encoder, max(config.blocks)
    params = dict(params)
    if count < encoder.depth:
        # A scan over blocks holds them stacked: the first ones are a slice. At least one stays, unread.
        params["blocks"] = jax.tree.map(lambda leaf: leaf[:max(count, 1)], params["blocks"])
    vit = ViT(dataclasses.replace(encoder, depth=max(count, 1), feature_layer=-1))
    states: Any = vit.apply({"params": params}, normalize(pixels, encoder), output="states")
    parts = []
    for layer in config.blocks:
        tokens = resample(states[layer][:, encoder.num_prefix:], config.grid)
        if config.cls:
            tokens = jnp.concatenate([states[layer][:, :1], tokens], axis=1)
        parts.append(standardized(tokens))
    return jnp.concatenate(parts, axis=-1)


def features_key(config: PoseConfig, params: Params) -> str:
    """A digest of all that the features of a crop depend on."""
    return digest([store.config_to_json(config.encoder), config.layers, config.grid, config.cls, config.context],
                  flatten(params))


@dataclasses.dataclass(frozen=True)
class Stored:
    """Features of objects by row, from one store or several."""

    objects: tuple[PoseObject, ...]
    stores: tuple[FeatureStore, ...]

    def __getitem__(self, row: int) -> Float[np.ndarray, "N C"]:
        return self.stores[row // CHUNK][self.objects[row].id]

    def rows(self, rows: Sequence[int] | np.ndarray) -> Float[np.ndarray, "B N C"]:
        """Several rows, float16."""
        return np.stack([self[int(row)] for row in rows])


def stored(config: PoseConfig, params: Params, objects: Mapping[str, Sequence[PoseObject]], folder: str | Path, *,
           batch_size: int = 32, show_progress: bool = True) -> dict[str, Stored]:
    """Features of all objects, computed where they are missing; `CHUNK` crops at a time survive a kill.

    Args:
        objects: by a name that is part of a path.
        folder: one folder below it per set of weights and settings.
    """
    key = features_key(config, params)
    run = jax.jit(lambda tree, pixels: read_tokens(config, tree, pixels))
    held = jax.device_put(params)

    def chunk(name: str, number: int, part: Sequence[PoseObject]) -> FeatureStore:
        return build(Path(folder) / key[:16] / f"{name}-{number:04d}", key, [item.id for item in part],
                     lambda row: part[row].crop(config.encoder.image_size, config.context),
                     lambda pixels: np.asarray(run(held, pixels)), batch_size=batch_size, show_progress=show_progress)

    return {name: Stored(tuple(found), tuple(
        chunk(name, start // CHUNK, found[start:start + CHUNK]) for start in range(0, len(found), CHUNK)))
        for name, found in objects.items()}
