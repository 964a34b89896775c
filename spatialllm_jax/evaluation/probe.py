"""Linear probes of frozen encoders: what their features say of an object whose box is given.

Ridge regression in closed form (`evaluation.ridge`) from the features under a `GRID` x `GRID` map of the true 2D box.
What it cannot read, a connector and a small language model will hardly find; what it can, they may. Orientation and
depth are the 3D awareness of El Banani et al. (2024) and of the paper (section 3.2.1); the category stands beside them
as what any encoder knows. (Probing frozen features: Alain and Bengio 2016.)
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from spatialllm_jax.data import images
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation.ridge import fit_predict
from spatialllm_jax.evaluation.statistics import Accuracy, Median, accuracy_clustered, median
from spatialllm_jax.models.config import VisionConfig
from spatialllm_jax.models.connector import resample
from spatialllm_jax.models.linear import Params
from spatialllm_jax.models.vit import ViT, normalize
from spatialllm_jax.scene.geometry import viewpoint
from spatialllm_jax.scene.pose import circular_difference
from spatialllm_jax.scene.serialize import scene_from_json

GRID = 3                    # cells per side of a box
CLEAR = 35.0                # degrees from a side's middle up to which a side is asked for; 45 is the boundary
LEAST = 50                  # objects with a clear side on either part
NEAR_AZIMUTH = 30.0         # degrees that count as right
NEAR_DEPTH = 1.25           # factor that counts as right
GAP = 1.15                  # factor between two distances from which on their order is asked for, as questions do
_BINS = np.arange(0.0, 360.0, 15.0)
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Labelled:
    """An object of a picture and what is true of it.

    Attributes:
        image: index of its record.
        box: x1, y1, x2, y2 as shares of the squared image.
        azimuth: degrees; None without a front.
        side: 0 front, 1 left, 2 back, 3 right faces the camera; None without a front or near a boundary.
        distance: from the camera; None where the scene's objects have no common unit.
    """

    image: int
    box: Float[np.ndarray, "4"]
    category: str
    azimuth: float | None
    side: int | None
    distance: float | None


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An encoder to probe.

    Attributes:
        label: as tables call it.
        params: of the encoder alone.
        layers: hidden states that are probed, 0 = embeddings, negative ones from the last.
    """

    label: str
    config: VisionConfig
    params: Params
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        depth = self.config.depth
        if wrong := [layer for layer in self.layers if not -depth - 1 <= layer <= depth]:
            raise UserError(f"layer {wrong[0]} does not exist: {self.config.name} has hidden states 0 to {depth}")
        if twice := [layer for layer in self.layers if self.layers.count(layer) > 1]:
            raise UserError(f"layer {twice[0]} of {self.config.name} is named twice; name every layer once")


@dataclasses.dataclass(frozen=True)
class ProbeScores:
    """What a probe reads off features, on held-out pictures; intervals cluster the objects of a picture.

    Attributes:
        side: which of four sides faces the camera, where one clearly does.
        azimuth: share within 30 degrees; `chance` is that of the best constant.
        azimuth_error: degrees.
        depth: share of distances within a factor of 1.25; `chance` is that of the training median. None where
            distances have no common unit.
        closer: share of pairs of a picture, at least 15 % apart in distance, that are ordered right. None likewise.
        category: which category it is.
    """

    side: Accuracy
    azimuth: Accuracy
    azimuth_error: Median
    depth: Accuracy | None
    closer: Accuracy | None
    category: Accuracy

    @property
    def columns(self) -> tuple[Accuracy | Median | None, ...]:
        """The cells of a line of `table`."""
        return self.side, self.azimuth, self.azimuth_error, self.depth, self.closer, self.category

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return dataclasses.asdict(self)


def box_features(features: Float[np.ndarray, "P C"], box: Sequence[float] | np.ndarray) -> Float[np.ndarray, " F"]:
    """Features under a box (x1, y1, x2, y2 as shares), averaged in GRID x GRID cells; `F = GRID**2 * C`."""
    side = int(features.shape[0] ** 0.5)
    square = np.asarray(features, np.float32).reshape(side, side, -1)
    steps = (np.arange(2 * GRID) + 0.5) / (2 * GRID)
    columns, rows = (np.clip(((box[axis] + steps * (box[axis + 2] - box[axis])) * side).astype(int), 0, side - 1)
                     for axis in (0, 1))
    cells = square[rows][:, columns].reshape(GRID, 2, GRID, 2, -1).mean((1, 3))
    return cells.reshape(-1)


def labelled_objects(records: Sequence[ImageRecord], resize: str = "pad") -> list[Labelled]:
    """The objects of all records. Raises UserError for a record without a scene."""
    found = []
    for index, record in enumerate(records):
        if not record.scene:
            raise UserError(f"image {record.image_id} has no scene; probe a dataset that launch.generate wrote")
        moved = images.transform(record.width, record.height, 1, resize)
        scene = scene_from_json(record.scene)
        for thing in scene.objects:
            azimuth = viewpoint(thing.box)[0] if thing.has_front else None
            side = None
            if azimuth is not None and abs((azimuth + 45.0) % 90.0 - 45.0) <= CLEAR:
                side = round(azimuth / 90.0) % 4
            distance = float(np.linalg.norm(thing.box.center)) if scene.shared_scale else None
            found.append(Labelled(index, moved.boxes(thing.bbox2d), thing.category, azimuth, side, distance))
    return found


def probe(x: Float[np.ndarray, "n F"], objects: Sequence[Labelled], held_out: float = 0.2) -> ProbeScores:
    """Scores of probes fitted on the first pictures, on the last `held_out` of them.

    Raises:
        UserError: fewer than 50 objects with a clear side on either part.
    """
    pictures = np.array([item.image for item in objects])
    train = pictures < (pictures.max() + 1) * (1 - held_out) if len(objects) else np.zeros(0, bool)
    side = np.array([-1 if item.side is None else item.side for item in objects])
    clear, turned = side >= 0, np.array([item.azimuth is not None for item in objects], bool)
    if min((clear & train).sum(), (clear & ~train).sum()) < LEAST:
        raise UserError("too few objects with a clear side to probe; take more images")

    (sides,) = fit_predict(x[clear], [np.eye(4)[side[clear]]], pictures[clear], train[clear])
    right_side = sides.argmax(1) == side[clear & ~train]

    azimuth = np.array([np.nan if item.azimuth is None else item.azimuth for item in objects])
    bins = _soft_bins(azimuth[turned])
    (masses,) = fit_predict(x[turned], [bins], pictures[turned], train[turned])
    true = azimuth[turned & ~train]
    off = np.abs(circular_difference(_peak(masses), true))
    usual = _peak(bins[train[turned]].mean(0)[None])
    guessed = float((np.abs(circular_difference(usual, true)) <= NEAR_AZIMUTH).mean())

    names = {name: index for index, name in enumerate(sorted({item.category for item in objects}))}
    category = np.array([names[item.category] for item in objects])
    targets = [np.eye(len(names))[category]]
    metric = all(item.distance is not None for item in objects)
    logs = np.log([item.distance or 1.0 for item in objects])
    kinds, *depths = fit_predict(x, targets + [logs[:, None]] * metric, pictures, train)
    rest = pictures[~train]
    depth = closer = None
    if metric:
        found, real = depths[0][:, 0], logs[~train]
        limit = np.log(NEAR_DEPTH)
        constant = float((np.abs(np.median(logs[train]) - real) <= limit).mean())
        depth = accuracy_clustered(np.abs(found - real) <= limit, constant, rest)
        closer = _order(found, real, rest)
    return ProbeScores(
        accuracy_clustered(right_side, 0.25, pictures[clear & ~train]),
        accuracy_clustered(off <= NEAR_AZIMUTH, guessed, pictures[turned & ~train]), median(off), depth, closer,
        accuracy_clustered(kinds.argmax(1) == category[~train], 1 / len(names), rest))


def _soft_bins(azimuth: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n bins"]:
    """A bump around each angle: where an object looks alike from two sides, two bumps may stand."""
    weights = np.exp(-0.5 * np.square(circular_difference(_BINS[None], azimuth[:, None]) / 15.0))
    return weights / weights.sum(1, keepdims=True)


def _peak(masses: Float[np.ndarray, "n bins"]) -> Float[np.ndarray, " n"]:
    """The angle of the highest bin, moved towards the higher of its neighbours (a parabola through the three)."""
    top, rows = masses.argmax(1), np.arange(len(masses))
    before, at, after = (masses[rows, (top + shift) % len(_BINS)] for shift in (-1, 0, 1))
    bend = np.minimum(before - 2 * at + after, -1e-9)
    return _BINS[top] + (_BINS[1] - _BINS[0]) * np.clip(0.5 * (before - after) / bend, -0.5, 0.5)


def _order(found: Float[np.ndarray, " n"], real: Float[np.ndarray, " n"], pictures: np.ndarray) -> Accuracy | None:
    right: list[bool] = []
    of: list[int] = []
    for picture in np.unique(pictures):
        for one, other in itertools.combinations(np.flatnonzero(pictures == picture), 2):
            if abs(real[one] - real[other]) >= np.log(GAP):
                right.append(bool((found[one] < found[other]) == (real[one] < real[other])))
                of.append(int(picture))
    return accuracy_clustered(right, 0.5, of) if right else None


def encode(encoder: Encoder, records: Sequence[ImageRecord], objects: Sequence[Labelled], grid: int,
           ) -> dict[int, Float[np.ndarray, "n F"]]:
    """Layer -> features under every object's box, the map resampled to `grid` x `grid` first; each picture once."""
    rows: dict[int, list[np.ndarray]] = {layer: [] for layer in encoder.layers}
    for start, features in _encoded(encoder.config, encoder.params, records, encoder.layers, grid):
        for item in objects:
            if start <= item.image < start + _BATCH:
                for layer, values in zip(encoder.layers, features, strict=True):
                    rows[layer].append(box_features(values[item.image - start], item.box))
    return {layer: np.stack(found) for layer, found in rows.items()}


def compare(encoders: Sequence[Encoder], mixes: Sequence[Sequence[str]], records: Sequence[ImageRecord], *,
            grid: int = 12, held_out: float = 0.2) -> dict[str, ProbeScores]:
    """Scores by label: "box" (nothing but the box's place and size), every encoder at every layer, every mix.

    Args:
        mixes: labels of encoders whose channels are put side by side on one grid, as the connector does (first layer of
            each).
        grid: side of that grid.

    Raises:
        UserError: see `labelled_objects` and `probe`; or a mix names an encoder that is not there.
    """
    labels = [encoder.label for encoder in encoders]
    for mix in mixes:
        if unknown := [name for name in mix if name not in labels]:
            raise UserError(f"mix {'+'.join(mix)}: {unknown[0]!r} is none of the encoders {', '.join(labels)}")
    objects = labelled_objects(records)
    found = {"box": probe(_box_alone(objects), objects, held_out)}
    kept: dict[str, np.ndarray] = {}
    for encoder in encoders:
        layers = encode(encoder, records, objects, grid)
        kept[encoder.label] = layers[encoder.layers[0]]
        for layer, x in layers.items():
            name = encoder.label if len(layers) == 1 else f"{encoder.label} layer {layer}"
            found[name] = probe(x, objects, held_out)
    for mix in mixes:
        # A linear probe does not care in which order columns stand: cells side by side are channels side by side.
        found["+".join(mix)] = probe(np.concatenate([kept[name] for name in mix], axis=1), objects, held_out)
    return found


def _box_alone(objects: Sequence[Labelled]) -> Float[np.ndarray, "n 6"]:
    boxes = np.array([item.box for item in objects]).reshape(-1, 4)
    size = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3)
    return np.concatenate([boxes, np.log(size)], axis=1).astype(np.float32)


def _encoded(encoder: VisionConfig, params: Params, records: Sequence[ImageRecord], layers: Sequence[int],
             grid: int | None = None) -> Iterator[tuple[int, Float[np.ndarray, "layers B P C"]]]:
    """(index of the first record, patch features of every layer) batch by batch."""
    vit = ViT(dataclasses.replace(encoder, feature_layer=-1))
    patches = (encoder.image_size // encoder.patch_size) ** 2

    @jax.jit
    def run(pixels: Any) -> Any:
        states: Any = vit.apply({"params": params}, normalize(pixels, encoder), output="states")
        chosen = states[np.array(layers), :, -patches:]
        return chosen if grid is None else jax.vmap(lambda layer: resample(layer, grid))(chosen)

    for start in range(0, len(records), _BATCH):
        part = [records[min(index, len(records) - 1)] for index in range(start, start + _BATCH)]
        pixels = np.stack([images.load(record.image, encoder.image_size, name=record.image_id) for record in part])
        yield start, np.asarray(run(pixels))


def table(scores: Mapping[str, ProbeScores]) -> str:
    """A line per representation."""
    heads = ("side", "azimuth ±30°", "azimuth error", "depth ±25 %", "closer", "category")
    lines = [" " * 24 + "".join(f"{head:>22s}" for head in heads)]
    for name, found in scores.items():
        cells = ("-" if cell is None else str(cell) for cell in found.columns)
        lines.append(f"{name[:24]:24s}" + "".join(f"{cell:>22s}" for cell in cells))
    first = next(iter(scores.values()))
    chances = [f"{100 * cell.chance:.1f} %" if isinstance(cell, Accuracy) else "" for cell in first.columns]
    lines.append(f"{'chance':24s}" + "".join(f"{chance:>22s}" for chance in chances))
    return "\n".join(lines)
