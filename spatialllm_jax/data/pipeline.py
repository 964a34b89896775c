"""Grain pipelines: records -> samples -> packed rows -> batches of numpy arrays.

Order and content follow from the seed alone: sources are shuffled by their own seeds, mixed by weight,
every draw of questions has its own generator. State can be saved and restored exactly (Grain iterators).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from spatialllm_jax.data import chat, images, samples
from spatialllm_jax.data.features import FeatureStore
from spatialllm_jax.data.patch_words import MAX_WORDS, patch_targets
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.storage import open_split
from spatialllm_jax.data.tokenizer import Tokenizer
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.types import Region

_SEQUENCES = ("tokens", "targets", "loss_weights", "positions", "branch_ids", "source_ids", "image_index")


@dataclasses.dataclass(frozen=True)
class RowConfig:
    """Static shapes of a batch.

    Attributes:
        batch_size: rows per step, over all processes.
        length: T, positions per row.
        images: N, image slots per row.
        image_size: side of the square images handed to the device.
        packing: several samples per row; else one.
        resize: "pad" (expand to square with the mean colour) or "square" (shortest edge, centre crop).
        bins: rows open at a time while packing.
    """

    batch_size: int
    length: int
    images: int
    image_size: int
    packing: bool = True
    resize: str = "pad"
    bins: int = 32


@dataclasses.dataclass(frozen=True)
class PatchMap:
    """How visual tokens lie on the image, for patch words.

    Attributes:
        grid: visual tokens per side; an encoder-wise `interleave` puts several on one place.
        resize: of `RowConfig`.
    """

    grid: int
    resize: str


@dataclasses.dataclass(frozen=True)
class _ImageRef:
    image_id: str
    encoded: bytes
    marks: tuple[Region, ...]
    store: FeatureStore | None
    patches: np.ndarray | None


class _Encode(grain.transforms.RandomMap):
    """Record -> tokenised sample (a dict of arrays), or None when nothing supervised is left."""

    def __init__(self, tokenizer: Tokenizer, text: samples.TextConfig, source: samples.SourceConfig,
                 source_id: int, store: FeatureStore | None, patches: PatchMap | None):
        self._tokenizer, self._text, self._source, self._source_id = tokenizer, text, source, source_id
        self._store, self._patches = store, patches

    def random_map(self, element, rng: np.random.Generator):
        questions = samples.draw_questions(element, self._source, rng)
        encoded = samples.encode_sample(self._tokenizer, self._text, self._source, questions)
        if encoded is None:
            return None
        targets, weights = chat.next_token_targets(encoded)
        reference = _ImageRef(element.image_id, element.image, samples.marks_of(questions), self._store,
                              None if self._patches is None else self._words(element, self._patches))
        return {
            "tokens": encoded.tokens, "targets": targets, "loss_weights": weights,
            "positions": encoded.positions, "branch_ids": encoded.branch_ids,
            "source_ids": np.full(encoded.length, self._source_id, np.int32),
            "image_index": encoded.image_index, "slots": np.ones(1, np.int32), "image": reference,
        }

    def _words(self, record: ImageRecord, patches: PatchMap) -> np.ndarray:
        if not self._source.patch_words:
            return np.full((self._text.num_image_tokens, MAX_WORDS), -1, np.int32)
        targets = patch_targets(record, self._tokenizer, self._source.patch_words, patches.grid, patches.resize)
        return np.repeat(targets, self._text.num_image_tokens // len(targets), axis=0)


class _Pad(grain.transforms.Map):
    """One sample -> one row, in the form that packing gives."""

    def __init__(self, length: int):
        self._length = length

    def map(self, element):
        room = self._length - len(element["tokens"])
        row = {name: np.pad(element[name], (0, room)) for name in _SEQUENCES}
        row["tokens_segment_ids"] = np.pad(np.ones(len(element["tokens"]), np.int32), (0, room))
        row["image"] = [element["image"]]
        return row


class _Finish(grain.transforms.Map):
    """Packed row -> arrays of a `Batch` row: segments, global patch indices, pixels or features."""

    def __init__(self, rows: RowConfig, num_image_tokens: int, feature_shape: tuple[int, int] | None):
        self._rows, self._tokens, self._shape = rows, num_image_tokens, feature_shape

    def map(self, element):
        row = {name: element[name] for name in _SEQUENCES}
        row["segment_ids"] = element["tokens_segment_ids"]
        # One image per segment for now, in segment order: segment s owns image slot s - 1.
        offset = (row["segment_ids"] - 1) * self._tokens
        local = row["image_index"]
        row["image_index"] = np.where((local >= 0) & (row["segment_ids"] > 0), local + offset, -1).astype(np.int32)
        references: Sequence[_ImageRef] = element["image"]
        row["image_mask"] = np.arange(self._rows.images) < len(references)
        if self._shape is not None:
            row["features"] = self._features(references, self._shape)
        else:
            row["images"] = self._pixels(references)
        if references[0].patches is not None:
            empty = np.full_like(references[0].patches, -1)
            row["patch_targets"] = np.concatenate(
                [reference.patches for reference in references] + [empty] * (self._rows.images - len(references)))
        return row

    def _features(self, references: Sequence[_ImageRef], shape: tuple[int, int]) -> np.ndarray:
        out = np.zeros((self._rows.images, *shape), np.float16)
        for slot, reference in enumerate(references):
            if reference.marks:
                raise UserError("stored features cannot show drawn marks; use region style 'name' or 'text', "
                                "or set features to ''")
            assert reference.store is not None
            out[slot] = reference.store[reference.image_id]
        return out

    def _pixels(self, references: Sequence[_ImageRef]) -> np.ndarray:
        size = self._rows.image_size
        out = np.zeros((self._rows.images, size, size, 3), np.uint8)
        for slot, reference in enumerate(references):
            out[slot] = images.load(reference.encoded, size, resize=self._rows.resize, marks=reference.marks,
                                    name=reference.image_id)
        return out


def _kept(element: Any) -> bool:
    return element is not None


def build(sources: Sequence[samples.SourceConfig], text: samples.TextConfig, rows: RowConfig,
          tokenizer: Tokenizer, *, seed: int, features: Mapping[tuple[str, str], FeatureStore] | None = None,
          patches: PatchMap | None = None,
          process_index: int = 0, process_count: int = 1, threads: int = 2) -> grain.IterDataset:
    """An endless dataset of batches (dicts of numpy arrays) for this process.

    Args:
        features: (dataset path, split) -> stored features of its images; all sources or none.
        patches: adds `patch_targets` to the batches.

    Raises:
        UserError: when a dataset is missing, empty or holds none of the wanted question types.
    """
    if rows.batch_size % process_count:
        raise UserError(f"batch size {rows.batch_size} does not divide over {process_count} processes")
    if text.num_image_tokens >= rows.length:
        raise UserError(f"rows of {rows.length} tokens cannot hold the {text.num_image_tokens} tokens of an image")
    stores = [features[source.path, source.split] for source in sources] if features else []
    shape = stores[0].shape if stores else None
    parts, weights = [], []
    for index, source in enumerate(sources):
        records = open_split(source.path, source.split)
        if len(records) == 0:
            raise UserError(f"source {source.name!r}: {source.path} split {source.split!r} has no records")
        part = grain.MapDataset.source(records).seed(seed + 1000 * index).shuffle().repeat()
        parts.append(part.random_map(_Encode(
            tokenizer, text, source, index, stores[index] if stores else None, patches)))
        weights.append(source.weight)
    dataset = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)
    dataset = dataset[process_index::process_count]
    stream = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads))
    stream = stream.filter(_kept)
    if rows.packing:
        stream = grain.experimental.FirstFitPackIterDataset(
            stream, length_struct={**dict.fromkeys(_SEQUENCES, rows.length), "slots": rows.images},
            num_packing_bins=rows.bins, seed=seed, meta_features=("image",))
    else:
        stream = stream.map(_Pad(rows.length))
    stream = stream.map(_Finish(rows, text.num_image_tokens, shape))
    return stream.batch(rows.batch_size // process_count, drop_remainder=True)
