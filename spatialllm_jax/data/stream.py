"""Sources -> one endless sequence of tokenised samples, shuffled and mixed; random access, so it resumes anywhere.

What cannot become a sample stays in the sequence as `Dropped`, with the reason: whoever reads the sequence in
order can count it exactly, however many threads worked ahead (`data.pipeline.counts`).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from spatialllm_jax.data import chat, samples
from spatialllm_jax.data.features import FeatureStore
from spatialllm_jax.data.llava_source import MalformedSample
from spatialllm_jax.data.patch_words import MAX_WORDS, patch_targets
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.samples import SourceConfig, TextConfig
from spatialllm_jax.data.tokenizer import Tokenizer
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.types import Region

SEQUENCES = ("tokens", "targets", "loss_weights", "positions", "branch_ids", "source_ids", "image_index")
NO_QUESTION = "no question of the wanted types"
NO_TARGET = "no supervised token left"
NO_IMAGE = "no image"
BROKEN_IMAGE = "image cannot be read"
MALFORMED = "malformed"
REASONS = (NO_QUESTION, NO_TARGET, NO_IMAGE, BROKEN_IMAGE, MALFORMED)
_REMEMBERED = 1 << 14       # pictures whose patch words are kept: a third of the work of a small stage, 1 kB each


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
class ImageRef:
    """A picture still encoded (or on disk), and what else fills its slot.

    Attributes:
        image_id: name in messages and in `store`.
        encoded: JPEG or PNG; b"" when `file` names it.
        marks: regions to draw.
        store: features that stand in for the pixels.
        patches: words of its visual tokens [P, MAX_WORDS].
    """

    image_id: str
    encoded: bytes = dataclasses.field(repr=False)
    file: str
    marks: tuple[Region, ...] = ()
    store: FeatureStore | None = None
    patches: np.ndarray | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A tokenised sample, before it gets its place in a row.

    Attributes:
        arrays: `SEQUENCES` -> [T]; `image_index` counts the visual tokens of this sample's own images.
        images: its pictures; none for a text on its own.
        source: index of its source.
        turns: (kept, drawn): those that did not fit into the longest sample are left out.
    """

    arrays: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    images: tuple[ImageRef, ...]
    source: int
    turns: tuple[int, int]

    @property
    def length(self) -> int:
        """T."""
        return len(self.arrays["tokens"])


@dataclasses.dataclass(frozen=True)
class Dropped:
    """What could not become a sample: one of `REASONS`, and a sentence or name that says which."""

    reason: str
    detail: str


class _Tolerant:
    """Records, with malformed ones as `Dropped`."""

    def __init__(self, records: Any):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> ImageRecord | Dropped:
        try:
            return self._records[index]
        except MalformedSample as error:
            return Dropped(MALFORMED, str(error))

    def __repr__(self) -> str:
        return repr(self._records)


class _Encode(grain.transforms.RandomMap):
    """Record -> `Sample` or `Dropped`."""

    def __init__(self, tokenizer: Tokenizer, text: TextConfig, source: SourceConfig, source_id: int,
                 store: FeatureStore | None, patches: PatchMap | None):
        self._tokenizer, self._text, self._source, self._source_id = tokenizer, text, source, source_id
        self._store, self._patches = store, patches
        self._known: dict[str, np.ndarray] = {}

    def random_map(self, element: ImageRecord | Dropped, rng: np.random.Generator) -> Sample | Dropped:
        if isinstance(element, Dropped):
            return element
        questions = samples.draw_questions(element, self._source, rng)
        if not questions and self._source.form != "patches":
            return Dropped(NO_QUESTION, element.image_id)
        if not element.has_image and self._source.form in ("contrastive", "patches"):
            return Dropped(NO_IMAGE, f"{element.image_id} is a text alone")
        encoded = samples.encode_sample(self._tokenizer, self._text, self._source, questions, element.has_image)
        if encoded is None:
            return Dropped(NO_TARGET, element.image_id)
        targets, weights = chat.next_token_targets(encoded)
        arrays = {"tokens": encoded.tokens, "targets": targets, "loss_weights": weights,
                  "positions": encoded.positions, "branch_ids": encoded.branch_ids,
                  "source_ids": np.full(encoded.length, self._source_id, np.int32),
                  "image_index": encoded.image_index}
        images: tuple[ImageRef, ...] = ()
        if element.has_image:
            images = (ImageRef(element.image_id, element.image, element.file, samples.marks_of(questions),
                               self._store, None if self._patches is None else self._words(element, self._patches)),)
        drawn = sum(len(question.turns) for question in questions)
        return Sample(arrays, images, self._source_id, (len(encoded.answers), drawn))

    def _words(self, record: ImageRecord, patches: PatchMap) -> np.ndarray:
        if not self._source.patch_words:
            return np.full((self._text.num_image_tokens, MAX_WORDS), -1, np.int32)
        if record.image_id in self._known:
            return self._known[record.image_id]
        targets = patch_targets(record, self._tokenizer, self._source.patch_words, patches.grid, patches.resize)
        targets = np.repeat(targets, self._text.num_image_tokens // len(targets), axis=0)
        if len(self._known) < _REMEMBERED:
            self._known[record.image_id] = targets
        return targets


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The samples of a stage.

    Attributes:
        samples: endless `MapDataset` of `Sample` and `Dropped`, all sources mixed.
        parts: the same, source by source, before mixing.
        records: number of records of each source.
        counts: samples of each source in one pass of the mixture, when sources say so; else None.
    """

    samples: grain.MapDataset
    parts: tuple[grain.MapDataset, ...]
    records: tuple[int, ...]
    counts: tuple[int, ...] | None

    @property
    def total(self) -> int | None:
        """Samples of one pass, None for a mixture by weights: it has no end."""
        return None if self.counts is None else sum(self.counts)


def mix(sources: Sequence[SourceConfig], text: TextConfig, tokenizer: Tokenizer, *, seed: int,
        features: Mapping[tuple[str, str], FeatureStore] | None = None, patches: PatchMap | None = None) -> Mixture:
    """Opens, shuffles, tokenises and mixes the sources; order and content follow from the seed alone.

    Raises:
        UserError: a source cannot be opened, or some give counts and others weights.
    """
    parts, records = [], []
    for index, source in enumerate(sources):
        found = samples.open_source(source)
        store = features[source.path, source.split] if features else None
        part = grain.MapDataset.source(_Tolerant(found)).seed(seed + 1000 * index).shuffle().repeat()
        parts.append(part.random_map(_Encode(tokenizer, text, source, index, store, patches)))
        records.append(len(found))
    counts = _counts(sources, records)
    if len(parts) == 1:
        mixed = parts[0]
    elif counts is None:
        mixed = grain.MapDataset.mix(parts, [source.weight for source in sources])
    else:
        mixed = grain.MapDataset.select_from_datasets(parts, _Shares(counts))
    return Mixture(mixed, tuple(parts), tuple(records), counts)


def _counts(sources: Sequence[SourceConfig], records: Sequence[int]) -> tuple[int, ...] | None:
    given = [source.name for source in sources if source.count is not None]
    if not given:
        return None
    if len(given) < len(sources):
        other = next(source.name for source in sources if source.count is None)
        raise UserError(f"source {given[0]!r} has a count but source {other!r} goes by weight; give all sources of a "
                        "stage a count (-1 for each record once) or none")
    return tuple(number if source.count == -1 else source.count or 0
                 for source, number in zip(sources, records, strict=True))


class _Shares:
    """Index of the mixture -> (source, index within it): exactly `counts[s]` of source s in every pass.

    Sample j of a source stands at (j + 1/2) / count of the pass, so sources are spread evenly. (Grain's own `mix`
    rounds proportions to a hundredth of the smallest, which over a pass of a million misses a count.)
    """

    def __init__(self, counts: Sequence[int]):
        times = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
        sources = np.repeat(np.arange(len(counts), dtype=np.int16), counts)
        keys = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
        order = np.argsort(times, kind="stable")
        self._sources, self._keys, self._counts = sources[order], keys[order], tuple(counts)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        turn, place = divmod(index, len(self._sources))
        source = int(self._sources[place])
        return source, int(self._keys[place]) + turn * self._counts[source]
