"""Linear probes of frozen encoders: what a layer's features say of an object whose box is given.

Ridge regression on one-hot labels, in closed form, from the features under a `GRID` x `GRID` map of the true
2D box. What it cannot read, a connector and a small language model will hardly find; what it can, they may.
(Probing frozen features: Alain and Bengio 2016; of 3D awareness: El Banani et al. 2024.)
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, Int

from spatialllm_jax.data import images
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation.statistics import Accuracy, wilson
from spatialllm_jax.models.config import VisionConfig
from spatialllm_jax.models.linear import Params
from spatialllm_jax.models.spatialllm import VisionTowers
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


def probe(encoder: VisionConfig, params: Params, records: Sequence[ImageRecord], *, held_out: float = 0.2,
          ) -> dict[str, Accuracy]:
    """"side" and "category" of objects, read from the features of `encoder.feature_layer`.

    Args:
        params: of the encoder alone.
        records: split by image; the last `held_out` of them are scored.

    Raises:
        UserError: fewer than 50 objects with a clear side on either part.
    """
    size, grid = encoder.image_size, encoder.image_size // encoder.patch_size
    towers = VisionTowers((encoder,), grid, "float32", "none", None)
    encode = jax.jit(lambda pixels: towers.apply({"params": {encoder.name: params}}, pixels))
    rows, categories, sides, image = [], [], [], []
    for start in range(0, len(records), _BATCH):
        part = [records[index] for index in range(start, min(start + _BATCH, len(records)))]
        pixels = np.stack([images.load(record.image, size, name=record.image_id) for record in part])
        padded = np.concatenate([pixels, np.repeat(pixels[-1:], _BATCH - len(pixels), axis=0)])
        features = np.asarray(encode(padded))
        for offset, record in enumerate(part):
            for box, category, side in labelled_boxes(record):
                rows.append(box_features(features[offset], box))
                categories.append(category)
                sides.append(-1 if side is None else side)
                image.append(start + offset)
    train = np.array(image) < len(records) * (1 - held_out)
    facing, clear = np.array(sides), np.array(sides) >= 0
    if min((clear & train).sum(), (clear & ~train).sum()) < 50:
        raise UserError("too few objects with a clear side to probe; take more images")
    x = np.stack(rows)
    names = {name: index for index, name in enumerate(sorted(set(categories)))}
    return {"side": ridge_accuracy(x[clear], facing[clear], train[clear]),
            "category": ridge_accuracy(x, np.array([names[name] for name in categories]), train)}
