"""Which samples share a row, and which rows a batch: one per row, packed, or in buckets of equal length.

All three look at a window of the sample stream, arrange it by a pure function of the lengths, and hand out the
rows; then comes the next window. So memory is bounded by the window (pictures in it are still encoded), the result
is the same every time, and a position in the stream is the start of a window and a number of rows.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import grain
import numpy as np

from spatialllm_jax.data.stream import Dropped, Sample
from spatialllm_jax.errors import UserError

_HOPELESS = 2_000      # samples dropped one after another


@dataclasses.dataclass(frozen=True)
class Group:
    """One row to be: its samples in order, its length, and what was dropped since the last one."""

    samples: tuple[Sample, ...]
    length: int
    dropped: tuple[Dropped, ...] = ()


class Arrangement(Protocol):
    """(lengths, number of images) of a window's samples -> rows of (length, indices), every index at most once."""

    def __call__(self, lengths: Sequence[int], images: Sequence[int], rng: np.random.Generator,
                 ) -> list[tuple[int, list[int]]]: ...


@dataclasses.dataclass(frozen=True)
class OnePerRow:
    """Every sample in a row of its own, in order."""

    length: int

    def __call__(self, lengths, images, rng):
        return [(self.length, [index]) for index in range(len(lengths))]


@dataclasses.dataclass(frozen=True)
class FullRows:
    """As many whole samples per row as fit best (`fill_rows`), rows in random order.

    In the order in which they are made, the last rows of a window would be those that nothing fits to.
    """

    length: int
    slots: int

    def __call__(self, lengths, images, rng):
        rows = fill_rows(lengths, images, self.length, self.slots)
        return [(self.length, rows[index]) for index in rng.permutation(len(rows))]


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Batches of similar length, one sample per row, each as long as the smallest bucket that holds its longest.

    Attributes:
        lengths: of rows, ascending.
        batch_size: rows per batch over all processes; windows are multiples of it.
    """

    lengths: tuple[int, ...]
    batch_size: int

    def __call__(self, lengths, images, rng):
        order = sorted(range(len(lengths)), key=lambda index: lengths[index])
        batches = [order[start:start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        rows = []
        for index in rng.permutation(len(batches)):
            longest = lengths[batches[index][-1]]
            bucket = next(length for length in self.lengths if length >= longest)
            rows += [(bucket, [member]) for member in batches[index]]
        return rows


def fill_rows(lengths: Sequence[int], images: Sequence[int], length: int, slots: int) -> list[list[int]]:
    """Samples -> rows of at most `length` positions and `slots` images; every sample is in exactly one row.

    The oldest sample left opens a row; of the others, in order of arrival, the first choice is taken that fills
    the row to the last position, or the one that comes closest. Taking them as they arrive, instead of the longest
    first, leaves a mixture for later rows: on lengths like Mix665K's that is worth three points (docs/training.md).
    """
    left = list(range(len(lengths)))
    rows = []
    while left:
        first = left.pop(0)
        chosen = _completion([lengths[i] for i in left], [images[i] for i in left],
                             length - lengths[first], slots - images[first])
        rows.append([first, *(left[k] for k in chosen)])
        taken = set(chosen)
        left = [index for k, index in enumerate(left) if k not in taken]
    return rows


def _completion(lengths: Sequence[int], images: Sequence[int], room: int, slots: int) -> list[int]:
    """Indices whose lengths add up to as much of `room` as possible, with at most `slots` images.

    Sums are bits of an integer, one integer per number of images, so that adding a sample is a shift.
    """
    within = (1 << (room + 1)) - 1
    sums = [1] + [0] * slots
    history = []
    alike: collections.Counter[tuple[int, int]] = collections.Counter()
    for size, count in zip(lengths, images, strict=True):
        history.append(sums)
        alike[size, count] += 1
        copies = alike[size, count]
        if copies * size <= room and copies * count <= slots:      # more of the same could not be used together
            sums = [sums[used] | ((sums[used - count] << size) & within if used >= count else 0)
                    for used in range(slots + 1)]
            if any(reached >> room & 1 for reached in sums):
                break
    total, used = max((reached.bit_length() - 1, -used) for used, reached in enumerate(sums))
    used = -used
    chosen = []
    for index in reversed(range(len(history))):
        if not history[index][used] >> total & 1:       # out of reach without this one
            chosen.append(index)
            total, used = total - lengths[index], used - images[index]
    return chosen[::-1]


class RowIterDataset(grain.IterDataset):
    """Samples -> `Group`s, window by window.

    Args:
        parent: of `Sample` and `Dropped`.
        window: samples looked at together.
        arrange: what makes rows of them.
        seed: for the order of rows within a window.
    """

    def __init__(self, parent: grain.IterDataset, window: int, arrange: Arrangement, seed: int):
        super().__init__(parent)
        self._settings = window, arrange, seed

    def __iter__(self) -> grain.DatasetIterator:
        return _RowIterator(self._parent.__iter__(), *self._settings)


class _RowIterator(grain.DatasetIterator):
    """State: where the window starts in the parent, which window it is, how many of its rows are out."""

    def __init__(self, parent: grain.DatasetIterator, window: int, arrange: Arrangement, seed: int):
        super().__init__(parent)
        self._size, self._arrange, self._seed = window, arrange, seed
        self._start, self._number, self._emitted = parent.get_state(), 0, 0
        self._groups: collections.deque[Group] = collections.deque()

    def __next__(self) -> Group:
        if not self._groups:
            self._fill()
        group = self._groups.popleft()
        self._emitted += 1
        if not self._groups:        # the window is used up: nothing of it must be read again
            self._start, self._number, self._emitted = self._parent.get_state(), self._number + 1, 0
        return group

    def get_state(self) -> dict[str, Any]:
        return {"parent": self._start, "number": self._number, "emitted": self._emitted}

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["parent"])
        self._start, self._number, self._emitted = state["parent"], state["number"], state["emitted"]
        self._groups.clear()
        if self._emitted:
            self._fill()
            for _ in range(self._emitted):
                self._groups.popleft()

    def _fill(self) -> None:
        samples: list[Sample] = []
        dropped: list[Dropped] = []
        row = 0
        while len(samples) < self._size:
            element = next(self._parent)
            if isinstance(element, Sample):
                samples.append(element)
                row = 0
                continue
            dropped.append(element)
            row += 1
            if row == _HOPELESS:
                raise UserError(f"the last {row:,} samples were all dropped, the last one ({element.detail}) because: "
                                f"{element.reason}; look at the types, form and length of the stage's sources")
        rng = np.random.default_rng((self._seed, self._number))
        rows = self._arrange([s.length for s in samples], [len(s.images) for s in samples], rng)
        for length, indices in rows:
            self._groups.append(Group(tuple(samples[i] for i in indices), length, tuple(dropped)))
            dropped = []
