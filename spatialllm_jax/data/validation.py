"""What a source holds, sample by sample, as training will see it: for `launch.validate_data`."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path

import grain
import numpy as np
from tqdm import tqdm

from spatialllm_jax.data import images
from spatialllm_jax.data.pipeline import RowConfig
from spatialllm_jax.data.stream import BROKEN_IMAGE, MALFORMED, NO_TARGET, Dropped, ImageRef, Sample

MISSING = "image file is missing"
_EXAMPLES = 5
_AHEAD = 64     # pictures being checked at a time
PERCENTILES = (1, 5, 25, 50, 75, 95, 99, 100)


@dataclasses.dataclass(frozen=True)
class SourceReport:
    """One source, one sample per record.

    Attributes:
        records: in the source.
        drawn: samples looked at.
        samples: usable ones, without those whose picture is missing or broken.
        texts: usable ones without a picture.
        truncated: usable ones that lost turns because they are too long.
        lengths: of usable samples, image positions included.
        images: pictures per usable sample.
        supervised, text_tokens: sums over usable samples.
        dropped: reason -> number, `MISSING` among them.
        examples: reason -> what was dropped, a few.
    """

    records: int
    drawn: int
    samples: int
    texts: int
    truncated: int
    lengths: np.ndarray
    images: np.ndarray
    supervised: int
    text_tokens: int
    dropped: Mapping[str, int]
    examples: Mapping[str, Sequence[str]]

    def problems(self, name: str, rows: RowConfig) -> list[str]:
        """Why training should not start on this source; empty when it may."""
        found = []
        if missing := self.dropped.get(MISSING, 0):
            found.append(f"source {name!r}: {missing} image files are missing, such as {self.examples[MISSING][0]}")
        broken = self.dropped.get(BROKEN_IMAGE, 0) + self.dropped.get(MALFORMED, 0)
        if broken > rows.max_broken:
            found.append(f"source {name!r}: {broken} samples cannot be read, more than rows.max_broken="
                         f"{rows.max_broken}")
        silent = self.dropped.get(NO_TARGET, 0)
        if silent > rows.max_unsupervised * max(self.samples + silent, 1):
            found.append(f"source {name!r}: {silent} of {self.samples + silent} samples have no supervised token "
                         f"left, more than rows.max_unsupervised={rows.max_unsupervised}")
        if not self.samples:
            found.append(f"source {name!r}: none of its {self.drawn} samples can be used")
        return found

    def summary(self) -> dict[str, object]:
        """Plain values for JSON."""
        result: dict[str, object] = {
            "records": self.records, "drawn": self.drawn, "samples": self.samples, "texts": self.texts,
            "truncated": self.truncated, "dropped": dict(self.dropped),
            "examples": {reason: list(found) for reason, found in self.examples.items()}}
        if self.samples:
            result.update(
                tokens_per_sample=round(float(self.lengths.mean()), 1),
                masked_share=round(1 - self.supervised / max(self.text_tokens, 1), 4),
                lengths=dict(zip(map(str, PERCENTILES), map(int, np.percentile(self.lengths, PERCENTILES)),
                                 strict=True)))
        return result


def check_source(part: grain.MapDataset, records: int, limit: int, *, name: str = "", threads: int = 2,
                 show_progress: bool = True) -> SourceReport:
    """Goes through the first pass of a source and opens every picture once.

    Args:
        part: of `stream.Mixture.parts`.
        limit: samples to look at; 0 for one per record.
    """
    count = min(limit, records) if limit else records
    dropped: collections.Counter[str] = collections.Counter()
    examples: dict[str, list[str]] = {}
    sizes, pictured = [], []
    texts = truncated = supervised = text_tokens = 0
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    stream = part[:count].to_iter_dataset(reading)
    bar = tqdm(stream, total=count, desc=name, unit="sample", disable=not show_progress, mininterval=1.0)
    for element, fault in _with_pictures(iter(bar), threads):
        fault = element if isinstance(element, Dropped) else fault
        if fault is not None:
            dropped[fault.reason] += 1
            if len(examples.setdefault(fault.reason, [])) < _EXAMPLES:
                examples[fault.reason].append(fault.detail)
            continue
        assert isinstance(element, Sample)
        sizes.append(element.length)
        pictured.append(len(element.images))
        texts += not element.images
        truncated += element.turns[0] < element.turns[1]
        supervised += int((element.arrays["loss_weights"] > 0).sum())
        text_tokens += int((element.arrays["image_index"] < 0).sum())
    return SourceReport(records, count, len(sizes), texts, truncated, np.array(sizes, int), np.array(pictured, int),
                        supervised, text_tokens, dict(dropped), examples)


def _with_pictures(stream: Iterator[Sample | Dropped], threads: int,
                   ) -> Iterator[tuple[Sample | Dropped, Dropped | None]]:
    """Elements in order with the fault of their picture, which is looked for in threads, once per file."""
    known: dict[str, Dropped | None] = {}
    waiting: collections.deque[tuple[Sample | Dropped, list[tuple[ImageRef, futures.Future]]]] = collections.deque()

    def settled() -> tuple[Sample | Dropped, Dropped | None]:
        element, asked = waiting.popleft()
        known.update((reference.file, answer.result()) for reference, answer in asked if reference.file)
        faults = [answer.result() for _, answer in asked]
        if isinstance(element, Sample):
            faults += [known.get(reference.file) for reference in element.images]
        return element, next((fault for fault in faults if fault is not None), None)

    with futures.ThreadPoolExecutor(threads, "pictures") as pool:
        for element in stream:
            references = element.images if isinstance(element, Sample) else ()
            waiting.append((element, [(r, pool.submit(_fault, r)) for r in references if r.file not in known]))
            if len(waiting) > _AHEAD:
                yield settled()
        while waiting:
            yield settled()


def _fault(reference: ImageRef) -> Dropped | None:
    """Why a picture cannot be used; it is decoded whole, since one that is cut short has a good header."""
    try:
        if reference.file and not os.path.exists(reference.file):
            return Dropped(MISSING, reference.file)
        images.decode(reference.encoded or Path(reference.file).read_bytes(), reference.file or reference.image_id)
    except (images.ImageError, OSError) as error:
        return Dropped(BROKEN_IMAGE, str(error))
    return None


def histogram(lengths: np.ndarray, bins: int = 12, width: int = 40) -> list[str]:
    """Lines of text: a bar per range of lengths."""
    counts, edges = np.histogram(lengths, bins=min(bins, int(np.ptp(lengths)) + 1))
    return [f"{int(low):6d} to {int(high):6d} {'#' * round(width * int(count) / int(counts.max())):{width}s} {count}"
            for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True)]
