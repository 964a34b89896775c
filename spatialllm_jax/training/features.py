"""Features of the frozen encoders, for stages that do not train them (`data.features` holds the files)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spatialllm_jax.data import images
from spatialllm_jax.data.features import FeatureStore, build
from spatialllm_jax.data.storage import open_split
from spatialllm_jax.errors import UserError
from spatialllm_jax.models import store
from spatialllm_jax.models.config import ModelConfig
from spatialllm_jax.models.spatialllm import SpatialLLM
from spatialllm_jax.training.partition import unflatten


def stored_features(model: ModelConfig, params: Mapping[str, jax.Array], splits: Iterable[tuple[str, str]], *,
                    image_size: int, resize: str, folder: str, show_progress: bool = True,
                    ) -> dict[tuple[str, str], FeatureStore]:
    """(dataset path, split) -> features of its images, computed where they are missing.

    Args:
        params: flat; only "vision/..." is read.
        splits: (dataset path, split) pairs.
        folder: one folder below it per set of weights, so that rows with equal encoders share the work.

    Raises:
        UserError: the model cuts pictures into tiles, but what is stored is one square picture each.
    """
    if model.tiling is not None:
        raise UserError("features are stored for one square picture each, but this model cuts pictures into tiles; "
                        "leave out --features")
    vision = {path: leaf for path, leaf in params.items() if path.startswith("vision/")}
    key = features_key(model, vision, image_size, resize)
    module = SpatialLLM(model)
    encode = jax.jit(lambda tree, pixels: module.apply({"params": tree}, pixels, method="encode_images"))
    tree = unflatten(vision)
    result = {}
    for path, split in sorted(set(splits)):
        records = open_split(path, split)

        def load(index: int, records=records) -> np.ndarray:
            record = records[index]
            return images.load(record.image, image_size, resize=resize, name=record.image_id)

        result[path, split] = build(
            Path(folder) / key[:16] / f"{Path(path).name}-{split}", key, records.image_ids(), load,
            lambda pixels: np.asarray(encode(tree, pixels)), show_progress=show_progress)
    return result


def features_key(model: ModelConfig, vision: Mapping[str, jax.Array], image_size: int, resize: str) -> str:
    """A digest of all that stored features depend on: weights, encoder configs, grid, resolution."""
    return digest([store.config_to_json(model.vision), model.connector.grid, model.dtype, image_size, resize], vision)


def digest(settings: Sequence[Any], params: Mapping[str, Any]) -> str:
    """Hexadecimal SHA-256 of settings (JSON) and flat parameters."""
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in sorted(params):
        found.update(path.encode())
        found.update(np.asarray(params[path]).tobytes())
    return found.hexdigest()
