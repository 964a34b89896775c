"""Writes one HTML page to judge a dataset by eye, and checks every answer against its numbers.

    python -m launch.inspect data/quickstart --out page.html
    python -m launch.inspect data/quickstart --check
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from launch import cli
from spatialllm_jax.data import audit
from spatialllm_jax.data.audit_tally import Tally
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.storage import open_split, split_names
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.types import Question
from spatialllm_jax.whole_files import write_whole

_FILTERS = ("types", "sources", "forms")


def main(argv: list[str]) -> dict[str, Any]:
    """Writes the page, or only checks; returns the page's path and what the check found.

    Raises:
        SystemExit: code 1 with --check, when an answer disagrees with its numbers.
    """
    parser = cli.parser(__doc__ or "")
    parser.add_argument("dataset", help="folder that launch.generate wrote")
    parser.add_argument("--out", default=None, help="HTML file to write")
    parser.add_argument("--check", action="store_true",
                        help="only recompute every answer of every split; exit code 1 if one disagrees")
    parser.add_argument("--split", default=None, help="split to show; the first one if not given")
    parser.add_argument("--limit", type=int, default=100, help="questions on the page, spread over types and forms")
    parser.add_argument("--types", default="", help="only these question types, separated by commas")
    parser.add_argument("--sources", default="", help="only questions of these sources, separated by commas")
    parser.add_argument("--forms", default="", help="only these forms (which, choice, yes_no), separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="which questions are drawn")
    args = parser.parse_args(argv)
    if args.limit <= 0:
        raise UserError(f"--limit {args.limit} must be positive")
    if not args.check and args.out is None:
        raise UserError("--out is missing; name the HTML file to write, or pass --check")
    if args.check:
        return _check(args.dataset, [args.split] if args.split else list(split_names(args.dataset)), args.json)

    split = args.split or split_names(args.dataset)[0]
    wanted = {name: {value for value in getattr(args, name).split(",") if value} for name in _FILTERS}
    tally, draw = Tally(), _Draw(args.limit, np.random.default_rng(args.seed))
    source = open_split(args.dataset, split)
    for index, record in enumerate(_progress(source, split)):
        tally.add(record)
        for position, question in enumerate(record.questions):
            values = (question.type, question.source, question.form)
            if all(not wanted[name] or value in wanted[name] for name, value in zip(_FILTERS, values, strict=True)):
                draw.add(index, position, question)
    chosen = draw.result()
    if not chosen:
        given = " ".join(f"--{name} {getattr(args, name)}" for name in _FILTERS if wanted[name])
        raise UserError(f"split {split!r} of {args.dataset} has no question of {given or 'any type'}; see its CARD.md")
    records = {index: source[index] for index, _ in chosen}
    card = Path(args.dataset) / "CARD.md"
    page = audit.audit_page(f"{args.dataset} · {split}", [(records[i], records[i].questions[k]) for i, k in chosen],
                            tally, card.read_text() if card.is_file() else "")
    write_whole(Path(args.out), page)
    wrong = tally.wrong.total()
    print(f"{args.out}: {len(chosen)} of {tally.questions} questions; {wrong} answers disagree with their numbers")
    _print_problems(tally)
    return {"page": args.out, "questions": len(chosen), **_found(tally)}


def _check(folder: str, splits: list[str], as_json: bool) -> dict[str, Any]:
    """Recomputes every answer of the splits and prints a table per split."""
    result: dict[str, Any] = {"splits": {}, "checked": 0, "wrong": 0}
    for split in splits:
        tally = Tally()
        for record in _progress(open_split(folder, split), split):
            tally.add(record)
        print(f"{folder} {split}: {tally.questions} answers on {tally.images} images, {tally.wrong.total()} wrong")
        for kind, number in sorted(tally.types.items()):
            print(f"  {kind:20s}{number:>9}{tally.wrong[kind]:>7} wrong")
        _print_problems(tally)
        result["splits"][split] = {**_found(tally), "types": dict(sorted(tally.types.items())),
                                   "wrong_types": dict(sorted(tally.wrong.items()))}  # fmt: skip
        result["checked"] += tally.questions
        result["wrong"] += tally.wrong.total()
    if result["wrong"]:
        if as_json:
            print(json.dumps(result, sort_keys=True), flush=True)
        raise SystemExit(1)
    return result


def _found(tally: Tally) -> dict[str, Any]:
    return {"checked": tally.questions, "wrong": tally.wrong.total(),
            "examples": [{"id": key, "problem": problem} for key, problem in tally.problems]}  # fmt: skip


def _print_problems(tally: Tally) -> None:
    for key, problem in tally.problems:
        print(f"  {key}: {problem}")


def _progress(source: Any, split: str) -> Iterator[ImageRecord]:
    """The records, with a bar on a terminal once it takes more than two seconds."""
    yield from tqdm(source, desc=split, unit="image", disable=None, delay=2.0, leave=False)


class _Draw:
    """Draws questions evenly over types and forms from a stream, in memory that depends on the limit alone."""

    def __init__(self, limit: int, rng: np.random.Generator) -> None:
        self._limit, self._rng = limit, rng
        self._piles: dict[tuple[str, str], list[tuple[float, int, int]]] = {}

    def add(self, index: int, position: int, question: Question) -> None:
        """Considers the question at `position` of record `index`; each pile keeps its `limit` largest lots."""
        pile = self._piles.setdefault((question.type, question.form), [])
        lot = (float(self._rng.random()), index, position)
        if len(pile) < self._limit:
            heapq.heappush(pile, lot)
        else:
            heapq.heappushpop(pile, lot)

    def result(self) -> list[tuple[int, int]]:
        """(record, question) pairs, type after type: a row of the same kind is quicker to judge."""
        piles = {key: sorted(pile) for key, pile in sorted(self._piles.items())}
        chosen: list[tuple[tuple[str, str], int, int]] = []
        while len(chosen) < self._limit and any(piles.values()):
            for key, pile in piles.items():
                if pile and len(chosen) < self._limit:
                    _, index, position = pile.pop()
                    chosen.append((key, index, position))
        return [(index, position) for key, index, position in sorted(chosen, key=lambda item: item[0][0])]


if __name__ == "__main__":
    cli.run(main)
