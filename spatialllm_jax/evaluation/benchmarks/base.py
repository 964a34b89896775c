"""What every benchmark is: where its rows are, how a row becomes an item, and its own way of summing up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spatialllm_jax.evaluation.benchmarks.files import BadRow, Row, find_files, read_rows
from spatialllm_jax.evaluation.items import Item, Skipped

Lines = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a benchmark's files are.

    Attributes:
        path: `--data`, a file or a folder.
        images: `--images`, the folder of pictures where it is another one.
        split: of a dataset folder.
        limit: only the first so many images (spatial_vqa) or questions; 0 for all.
    """

    path: Path
    images: Path | None = None
    split: str = "test"
    limit: int = 0


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: on the command line.
        title: in reports.
        files: patterns of its files within a folder, best first.
        columns: that its files have, at least.
        item: row -> item, or None for a row of another benchmark in the same file; raises BadRow.
        headline: lines of predictions -> the benchmark's own figures by name, each a share in [0, 1] (or None).
        answer: "generate" or "score": how it is answered unless the user says otherwise.
        max_new_tokens: longest generated answer unless the user says otherwise.
        items: instead of `files`, `columns` and `item`: all items of a source.
    """

    name: str
    title: str
    files: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    item: Callable[[Row], Item | None] | None = None
    headline: Callable[[Lines], dict[str, float | None]] = lambda lines: {}
    answer: str = "generate"
    max_new_tokens: int = 32
    items: Callable[[Source], Iterator[Item | Skipped]] | None = None


def items_of(benchmark: Benchmark, source: Source) -> Iterator[Item | Skipped]:
    """The items of a benchmark, in the file's order, with the rows that cannot be asked between them.

    Raises:
        UserError: the file is not the benchmark's.
    """
    if benchmark.items is not None:
        yield from benchmark.items(source)
        return
    assert benchmark.item is not None
    rows = read_rows(find_files(source.path, benchmark.files), benchmark.columns, source.images)
    yield from made_of(rows, benchmark.item, source.limit)


def made_of(rows: Iterable[Row | BadRow], make: Callable[[Row], Item | None], limit: int = 0,
            ) -> Iterator[Item | Skipped]:
    """What `make` makes of rows, up to `limit` items (0: all)."""
    count = 0
    for row in rows:
        if isinstance(row, BadRow):
            where, _, why = str(row).partition(": ")
            yield Skipped(where, why)
            continue
        if 0 < limit <= count:
            return
        try:
            item = make(row)
        except BadRow as error:
            yield Skipped(row.where, str(error))
            continue
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            yield Skipped(row.where, f"it is not of the benchmark's form ({error!r})")
            continue
        if item is not None:
            count += 1
            yield item


def share(lines: Lines) -> float | None:
    """Share of right answers; None of nothing."""
    scored = [bool(line["right"]) for line in lines if line["right"] is not None]
    return sum(scored) / len(scored) if scored else None


def mean(values: Sequence[float | None]) -> float | None:
    """Mean, None where a part is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if values and len(known) == len(values) else None
