"""Grain pipelines: records -> samples -> rows -> batches of numpy arrays.

Order and content follow from the seed alone: sources are shuffled by their own seeds, mixed by weight or count,
every draw of questions has its own generator. State can be saved and restored exactly (Grain iterators), what was
dropped until then included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grain
import numpy as np

from spatialllm_jax.data import images
from spatialllm_jax.data.features import FeatureStore
from spatialllm_jax.data.packing import Arrangement, Buckets, FullRows, Group, OnePerRow, RowIterDataset
from spatialllm_jax.data.patch_words import MAX_WORDS
from spatialllm_jax.data.samples import SourceConfig, TextConfig
from spatialllm_jax.data.stream import (
    BROKEN_IMAGE,
    MALFORMED,
    NO_TARGET,
    REASONS,
    SEQUENCES,
    Dropped,
    ImageRef,
    Mixture,
    PatchMap,
    Sample,
    mix,
)
from spatialllm_jax.data.tokenizer import Tokenizer
from spatialllm_jax.errors import UserError

# Key of a batch that stays on the host: the images of every row, to name them when a step goes wrong.
NAMES = "names"
_PACKINGS = {True: "pack", False: "none"}
_JUDGED_FROM = 1000     # samples before too many without a supervised token stop the run


@dataclasses.dataclass(frozen=True)
class RowConfig:
    """Shapes of a batch, and what to do with samples that do not fit them.

    Attributes:
        batch_size: rows per step, over all processes; 0 to have it follow from `samples`.
        length: T, positions per row.
        images: N, image slots per row.
        max_length: positions of the longest sample, where it is to be shorter than a row; 0 for `length`.
        image_size: side of the square images handed to the device.
        packing: True or "pack" for several samples per row, False or "none" for one, "buckets" for one in rows of
            several lengths.
        resize: "pad" (expand to square with the mean colour) or "square" (shortest edge, centre crop).
        window: samples looked at together when packing or filling buckets.
        samples: instead of `batch_size`, the mean number of samples per step (`data.lengths.plan`).
        buckets: row lengths for "buckets", ascending up to `length`; each is one more program to compile.
        max_broken: samples skipped because they are malformed or their image cannot be read, before the run stops.
        max_unsupervised: share of samples without a supervised token at which the run stops, from 1,000 samples on.
    """

    batch_size: int = 0
    length: int = 2048
    images: int = 1
    image_size: int = 336
    packing: bool | str = True
    resize: str = "pad"
    window: int = 1024
    samples: int = 0
    buckets: Sequence[int] = ()
    max_broken: int = 100
    max_unsupervised: float = 0.1
    max_length: int = 0

    def __post_init__(self):
        if self.layout not in ("pack", "none", "buckets"):
            raise UserError(f"rows.packing={self.packing!r} is unknown; choose pack, none or buckets")
        if self.resize not in images.RESIZES:
            raise UserError(f"rows.resize={self.resize!r} is unknown; choose from {', '.join(images.RESIZES)}")
        if self.images < 1 or self.window < 1 or self.batch_size < 0 or self.samples < 0:
            raise UserError("rows.images and rows.window must be at least 1, rows.batch_size and rows.samples not "
                            "negative")
        if not 0 <= self.max_length <= self.length:
            raise UserError(f"rows.max_length={self.max_length} must be 0 or up to rows.length={self.length}")
        if (self.layout == "buckets") != bool(self.buckets):
            raise UserError(f"rows.packing={self.packing!r} with rows.buckets={tuple(self.buckets)}: packing "
                            "\"buckets\" and a list of lengths go together")
        if self.buckets and (list(self.buckets) != sorted(set(self.buckets)) or self.buckets[-1] != self.length):
            raise UserError(f"rows.buckets={tuple(self.buckets)} must ascend up to rows.length={self.length}")
        if self.batch_size and self.samples:
            raise UserError("rows.batch_size and rows.samples are two ways to say the same; set one of them to 0")

    @property
    def layout(self) -> str:
        """`packing` as a word: "pack", "none" or "buckets"."""
        return _PACKINGS.get(self.packing, self.packing)  # type: ignore[arg-type, return-value]

    @property
    def longest(self) -> int:
        """Positions of the longest sample."""
        return self.max_length or self.length

    def arrangement(self) -> tuple[Arrangement, int]:
        """(what makes rows of a window of samples, the window's size)."""
        if self.layout == "none":
            return OnePerRow(self.length), 1
        if self.layout == "pack":
            return FullRows(self.length, self.images), self.window
        batches = max(self.window // self.batch_size, 1)
        return Buckets(tuple(self.buckets), self.batch_size), batches * self.batch_size


@dataclasses.dataclass(frozen=True)
class Counts:
    """What has gone through an iterator so far: over all processes, but for pictures that could not be read, which
    only the process that wanted them knows of.

    Attributes:
        samples: in the batches, by source.
        dropped: by reason (`data.stream.REASONS`).
        positions: (used, there are) in all rows.
        last: the last broken or malformed sample, as a sentence.
    """

    samples: tuple[int, ...]
    dropped: Mapping[str, int]
    positions: tuple[int, int]
    last: str = ""

    @property
    def density(self) -> float:
        """Share of positions that hold a sample."""
        return self.positions[0] / max(self.positions[1], 1)


def counts(iterator: grain.DatasetIterator) -> Counts:
    """The counts at the position of an iterator of `build`.

    They are part of its state: exact after a restore, and not ahead of the batches handed out, whatever was
    prefetched. Of a window of packed samples, those dropped count with the window's first row.
    """
    state = iterator.get_state()
    while "counts" not in state:
        state = state["parent"]
    found = state["counts"]
    return Counts(tuple(found["samples"]), dict(found["dropped"]), tuple(found["positions"]), found["last"])


class _Finish:
    """A group of samples and their pixels -> the arrays of one `Batch` row."""

    def __init__(self, rows: RowConfig, num_image_tokens: int, feature_shape: tuple[int, int] | None,
                 patch_shape: tuple[int, int] | None):
        self._rows, self._tokens = rows, num_image_tokens
        self._feature_shape, self._patch_shape = feature_shape, patch_shape

    def row(self, samples: Sequence[Sample], pixels: Sequence[np.ndarray | None], length: int,
            ) -> dict[str, np.ndarray]:
        """The samples one after the other, then padding.

        Args:
            pixels: of all images of `samples` in order; None where features stand in for them.
        """
        row: dict[str, Any] = {name: np.zeros(length, np.float32 if name == "loss_weights" else np.int32)
                               for name in (*SEQUENCES, "segment_ids")}
        row["image_index"][:] = -1
        start = slot = 0
        for segment, sample in enumerate(samples, 1):
            here = slice(start, start + sample.length)
            for name in SEQUENCES:
                row[name][here] = sample.arrays[name]
            row["segment_ids"][here] = segment
            # Visual tokens are counted over the row: those of a sample begin where its first slot does.
            local = row["image_index"][here]
            local[local >= 0] += slot * self._tokens
            start, slot = start + sample.length, slot + len(sample.images)
        references = [reference for sample in samples for reference in sample.images]
        row["image_mask"] = np.arange(self._rows.images) < len(references)
        size = self._rows.image_size
        filled = np.zeros((self._rows.images, size, size, 3), np.uint8) if self._feature_shape is None \
            else np.zeros((self._rows.images, *self._feature_shape), np.float16)
        for place, (reference, picture) in enumerate(zip(references, pixels, strict=True)):
            filled[place] = self._features(reference) if picture is None else picture
        row["images" if self._feature_shape is None else "features"] = filled
        if self._patch_shape is not None:
            words = np.full((self._rows.images, *self._patch_shape), -1, np.int32)
            for place, reference in enumerate(references):
                assert reference.patches is not None
                words[place] = reference.patches
            row["patch_targets"] = words.reshape(-1, self._patch_shape[1])
        return row

    def _features(self, reference: ImageRef) -> np.ndarray:
        if reference.marks:
            raise UserError("stored features cannot show drawn marks; use region style 'name' or 'text', "
                            "or set features to ''")
        assert reference.store is not None
        return reference.store[reference.image_id]


def read_pixels(reference: ImageRef, size: int, resize: str) -> np.ndarray | Dropped:
    """The picture [size, size, 3] with its marks drawn, or why it cannot be read."""
    try:
        encoded = reference.encoded or Path(reference.file).read_bytes()
        return images.load(encoded, size, resize=resize, marks=reference.marks,
                           name=reference.file or reference.image_id)
    except images.ImageError as error:
        return Dropped(BROKEN_IMAGE, str(error))
    except OSError as error:
        return Dropped(BROKEN_IMAGE, f"image {reference.file} cannot be read ({error.strerror or error}); check the "
                                     "image folder")


class _Batches(grain.IterDataset):
    """Groups -> batches: reads the pictures, leaves out samples whose picture is broken, counts."""

    def __init__(self, parent: grain.IterDataset, rows: RowConfig, share: slice, finish: _Finish, sources: int,
                 with_pixels: bool, threads: int):
        super().__init__(parent)
        self._settings = rows, share, finish, sources, with_pixels, threads

    def __iter__(self) -> grain.DatasetIterator:
        return _BatchIterator(self._parent.__iter__(), *self._settings)


class _BatchIterator(grain.DatasetIterator):
    """Every process goes through the whole order and finishes its own rows of each batch: tokens are cheap, and so
    the order, the batches and the state are the same for any number of processes.

    With several processes (or buckets), a row whose pictures are all broken stays, as padding: the others cannot
    know of it. A single process takes the next row in its place.
    """

    def __init__(self, parent: grain.DatasetIterator, rows: RowConfig, share: slice, finish: _Finish,
                 sources: int, with_pixels: bool, threads: int):
        super().__init__(parent)
        self._rows, self._share, self._finish = rows, share, finish
        self._replaces = share == slice(0, rows.batch_size) and rows.layout != "buckets"
        self._pool = futures.ThreadPoolExecutor(max(threads, 1), "pictures") if with_pixels else None
        self._counts: dict[str, Any] = {"samples": [0] * sources, "dropped": dict.fromkeys(REASONS, 0),
                                        "positions": [0, 0], "last": ""}

    def close(self) -> None:
        """Ends the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()

    def get_state(self) -> dict[str, Any]:
        # Counts change in place: a state must keep those of its moment.
        kept = {name: value.copy() if hasattr(value, "copy") else value for name, value in self._counts.items()}
        return {"parent": self._parent.get_state(), "counts": kept}

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["parent"])
        self._counts = {name: value.copy() if hasattr(value, "copy") else value
                        for name, value in state["counts"].items()}

    def __next__(self) -> dict[str, np.ndarray]:
        rows: list[dict[str, np.ndarray]] = []
        while len(rows) < self._share.stop - self._share.start:
            groups = [next(self._parent) for _ in range(self._rows.batch_size - len(rows))]
            own = groups[self._share]
            rows += self._finished(own)
            for group in groups:
                if not any(group is mine for mine in own):
                    self._count_group(group, group.samples)
            self._check()
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _finished(self, groups: Sequence[Group]) -> list[dict[str, np.ndarray]]:
        """The rows of `groups`, without those that lost all their samples where others may take their place."""
        references = [reference for group in groups for sample in group.samples for reference in sample.images]
        size, resize = self._rows.image_size, self._rows.resize
        pictures: Any = iter([None] * len(references) if self._pool is None else
                             list(self._pool.map(lambda reference: read_pixels(reference, size, resize), references)))
        rows = []
        for group in groups:
            kept, pixels = [], []
            for sample in group.samples:
                own = [next(pictures) for _ in sample.images]
                broken = next((picture for picture in own if isinstance(picture, Dropped)), None)
                if broken is not None:
                    self._count(broken)
                    continue
                kept.append(sample)
                pixels += own
            stays = bool(kept) or not self._replaces
            if stays:
                row = self._finish.row(kept, pixels, group.length)
                ids = [reference.image_id for sample in kept for reference in sample.images]
                rows.append({**row, NAMES: np.array(", ".join(ids) or "text alone")})
            self._count_group(group, kept, stays)
        return rows

    def _count_group(self, group: Group, kept: Sequence[Sample], stays: bool = True) -> None:
        for dropped in group.dropped:
            self._count(dropped)
        for sample in kept:
            self._counts["samples"][sample.source] += 1
            self._counts["positions"][0] += sample.length
        self._counts["positions"][1] += group.length if stays else 0

    def _count(self, dropped: Dropped) -> None:
        self._counts["dropped"][dropped.reason] += 1
        if dropped.reason in (BROKEN_IMAGE, MALFORMED):
            self._counts["last"] = dropped.detail

    def _check(self) -> None:
        dropped = self._counts["dropped"]
        broken = dropped[BROKEN_IMAGE] + dropped[MALFORMED]
        if broken > self._rows.max_broken:
            raise UserError(f"{broken} samples could not be read, more than rows.max_broken={self._rows.max_broken}; "
                            f"the last of them: {self._counts['last']}")
        silent = dropped[NO_TARGET]
        seen = silent + sum(self._counts["samples"])
        if seen >= _JUDGED_FROM and silent > self._rows.max_unsupervised * seen:
            raise UserError(f"{silent} of {seen} samples have no supervised token left, more than "
                            f"rows.max_unsupervised={self._rows.max_unsupervised}: their answers do not fit into "
                            f"{self._rows.longest} positions, raise rows.length or choose other questions")


def build(sources: Sequence[SourceConfig], text: TextConfig, rows: RowConfig, tokenizer: Tokenizer, *, seed: int,
          features: Mapping[tuple[str, str], FeatureStore] | None = None, patches: PatchMap | None = None,
          share: tuple[int, int] = (0, 1), threads: int = 2, prefetch: int = 2) -> grain.IterDataset:
    """An endless dataset of batches (dicts of numpy arrays): this process's rows of every one.

    The shares of all processes, one after the other, are the batch that a single process would make.

    Args:
        share: (k, n), the k-th of n equal parts of a batch's rows is this process's.
        features: (dataset path, split) -> stored features of its images; all sources or none.
        patches: adds `patch_targets` to the batches.
        threads: that tokenise, and as many that decode pictures.
        prefetch: batches made ahead by a thread of their own; 0 makes each when it is asked for.

    Raises:
        UserError: a dataset is missing or empty, or the rows cannot hold what they must; and from the iterator,
            when too many samples are broken or carry nothing to learn.
    """
    if not rows.batch_size:
        raise UserError("rows.batch_size is 0; set it, or set rows.samples and let data.lengths.plan work it out")
    part, parts = share
    if rows.batch_size % parts:
        raise UserError(f"batch size {rows.batch_size} does not divide over {parts} processes")
    if text.num_image_tokens >= rows.length:
        raise UserError(f"rows of {rows.length} tokens cannot hold the {text.num_image_tokens} tokens of an image")
    if text.max_length > rows.length:
        raise UserError(f"samples of up to {text.max_length} tokens do not fit into rows.length={rows.length}")
    stores = [features[source.path, source.split] for source in sources] if features else []
    shape = stores[0].shape if stores else None
    found: Mixture = mix(sources, text, tokenizer, seed=seed, features=features, patches=patches)
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    arrange, window = rows.arrangement()
    grouped = RowIterDataset(found.samples.to_iter_dataset(reading), window, arrange, seed)
    own = rows.batch_size // parts
    finish = _Finish(rows, text.num_image_tokens, shape, (text.num_image_tokens, MAX_WORDS) if patches else None)
    batches = _Batches(grouped, rows, slice(part * own, (part + 1) * own), finish, len(sources), shape is None, threads)
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=prefetch)
