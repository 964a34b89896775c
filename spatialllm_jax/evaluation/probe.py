"""Linear probes of frozen encoders: what a layer's features say of an object whose box is given.

Ridge regression on one-hot labels, in closed form, from the features under a `GRID` x `GRID` map of the true
2D box. What it cannot read, a connector and a small language model will hardly find; what it can, they may.
(Probing frozen features: Alain and Bengio 2016; of 3D awareness: El Banani et al. 2024.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from spatialllm_jax.data import images
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation.statistics import Accuracy, wilson
from spatialllm_jax.models.config import VisionConfig
from spatialllm_jax.models.linear import Params
from spatialllm_jax.models.vit import ViT, normalize
from spatialllm_jax.scene.geometry import viewpoint
from spatialllm_jax.scene.serialize import scene_from_json

GRID = 3          # cells per side of a box
CLEAR = 35.0      # degrees from a side's middle up to which a side is asked for; 45 is the boundary
RIDGE = 9000.0    # penalty, for standardised features
_BATCH = 16


def box_features(features: Float[np.ndarray, "P C"], box: Sequence[float] | np.ndarray) -> Float[np.ndarray, " F"]:
    """Features under a box (x1, y1, x2, y2 as shares), averaged in GRID x GRID cells; `F = GRID**2 * C`."""
    side = int(features.shape[0] ** 0.5)
    square = np.asarray(features, np.float32).reshape(side, side, -1)
    steps = (np.arange(2 * GRID) + 0.5) / (2 * GRID)
    columns, rows = (np.clip(((box[axis] + steps * (box[axis + 2] - box[axis])) * side).astype(int), 0, side - 1)
                     for axis in (0, 1))
    cells = square[rows][:, columns].reshape(GRID, 2, GRID, 2, -1).mean((1, 3))
    return cells.reshape(-1)


def labelled_boxes(record: ImageRecord, resize: str = "pad") -> list[tuple[np.ndarray, str, int | None]]:
    """(box as shares of the squared image, category, side) per object; the side (0 front, 1 left, 2 back,
    3 right) that faces the camera, None without a front or near a boundary."""
    if not record.scene:
        raise UserError(f"image {record.image_id} has no scene; probe a dataset that launch.generate wrote")
    moved = images.transform(record.width, record.height, 1, resize)
    found = []
    for thing in scene_from_json(record.scene).objects:
        side = None
        if thing.has_front:
            azimuth = viewpoint(thing.box)[0]
            off = abs((azimuth + 45.0) % 90.0 - 45.0)
            side = round(azimuth / 90.0) % 4 if off <= CLEAR else None
        found.append((moved.boxes(thing.bbox2d), thing.category, side))
    return found


def ridge_accuracy(x: Float[np.ndarray, "n F"], labels: Int[np.ndarray, " n"], train: np.ndarray) -> Accuracy:
    """Accuracy on the rows outside `train` of a ridge classifier fitted on those inside."""
    mean, scale = x[train].mean(0), x[train].std(0) + 1e-3
    x = np.c_[(x - mean) / scale, np.ones(len(x), np.float32)]
    classes = int(labels.max()) + 1
    gram = x[train].T @ x[train] + RIDGE * np.eye(x.shape[1], dtype=np.float32)
    weights = np.linalg.solve(gram, x[train].T @ np.eye(classes, dtype=np.float32)[labels[train]])
    right = int(((x[~train] @ weights).argmax(1) == labels[~train]).sum())
    n = int((~train).sum())
    low, high = wilson(right, n)
    return Accuracy(right / max(n, 1), n, low, high, 1 / classes)


def probe(encoder: VisionConfig, params: Params, records: Sequence[ImageRecord], layers: Sequence[int], *,
          held_out: float = 0.2) -> dict[int, dict[str, Accuracy]]:
    """"side" and "category" of objects, read from the features of every layer; pictures are encoded once.

    Args:
        params: of the encoder alone.
        records: split by image; the last `held_out` of them are scored.
        layers: hidden states, 0 = embeddings; negative ones count from the last.

    Raises:
        UserError: fewer than 50 objects with a clear side on either part, or a layer that does not exist.
    """
    if wrong := [layer for layer in layers if not -encoder.depth - 1 <= layer <= encoder.depth]:
        raise UserError(f"layer {wrong[0]} does not exist: {encoder.name} has hidden states 0 to {encoder.depth}")
    objects = [(index, *found) for index, record in enumerate(records) for found in labelled_boxes(record)]
    image = np.array([found[0] for found in objects])
    facing = np.array([-1 if found[3] is None else found[3] for found in objects])
    train, clear = image < len(records) * (1 - held_out), facing >= 0
    if min((clear & train).sum(), (clear & ~train).sum()) < 50:
        raise UserError("too few objects with a clear side to probe; take more images")
    names = {name: index for index, name in enumerate(sorted({found[2] for found in objects}))}
    category = np.array([names[found[2]] for found in objects])

    rows: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    for start, features in _encoded(encoder, params, records, layers):
        for index, box, *_ in objects:
            if start <= index < start + _BATCH:
                for layer, values in zip(layers, features, strict=True):
                    rows[layer].append(box_features(values[index - start], box))
    result = {}
    for layer in layers:
        x = np.stack(rows[layer])
        result[layer] = {"side": ridge_accuracy(x[clear], facing[clear], train[clear]),
                         "category": ridge_accuracy(x, category, train)}
    return result


def _encoded(encoder: VisionConfig, params: Params, records: Sequence[ImageRecord], layers: Sequence[int],
             ) -> Iterator[tuple[int, Float[np.ndarray, "layers B P C"]]]:
    """(index of the first record, patch features of every layer) batch by batch."""
    vit = ViT(dataclasses.replace(encoder, feature_layer=-1))
    patches = (encoder.image_size // encoder.patch_size) ** 2

    @jax.jit
    def encode(pixels):
        states: Any = vit.apply({"params": params}, normalize(pixels, encoder), output="states")
        return states[np.array(layers), :, -patches:]

    for start in range(0, len(records), _BATCH):
        part = [records[min(index, len(records) - 1)] for index in range(start, start + _BATCH)]
        pixels = np.stack([images.load(record.image, encoder.image_size, name=record.image_id) for record in part])
        yield start, np.asarray(encode(pixels))
