"""Writes one HTML page to judge a dataset by eye, and checks every answer against its numbers.

    python -m launch.inspect data/quickstart --out page.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from launch import cli
from spatialllm_jax.data import audit
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.storage import open_split, split_names
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.recheck import recheck
from spatialllm_jax.questions.types import Question
from spatialllm_jax.scene.serialize import scene_from_json


def main(argv: list[str]) -> dict[str, Any]:
    """Writes the page; returns its path and what the check found."""
    parser = cli.parser(__doc__ or "")
    parser.add_argument("dataset", help="folder that launch.generate wrote")
    parser.add_argument("--out", required=True, help="HTML file to write")
    parser.add_argument("--split", default=None, help="split to show; the first one if not given")
    parser.add_argument("--limit", type=int, default=100, help="questions on the page, spread over types and images")
    parser.add_argument("--types", default="", help="only these question types, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="which questions are drawn")
    args = parser.parse_args(argv)
    if args.limit <= 0:
        raise UserError(f"--limit {args.limit} must be positive")
    split = args.split or split_names(args.dataset)[0]
    source = open_split(args.dataset, split)
    types = {name for name in args.types.split(",") if name}
    found: dict[str, list[tuple[int, Question]]] = {}
    checked, wrong = 0, []
    for index, record in enumerate(source):
        scene = scene_from_json(record.scene) if record.scene else None
        for question in record.questions:
            checked += 1
            problem = recheck(question, scene)
            if problem:
                wrong.append({"id": question.id, "problem": problem})
            if not types or question.type in types:
                found.setdefault(question.type, []).append((index, question))
    if not found:
        raise UserError(f"split {split!r} of {args.dataset} has no question of type {args.types}; see its CARD.md")
    chosen = _draw(found, args.limit, np.random.default_rng(args.seed))
    records: dict[int, ImageRecord] = {index: source[index] for index, _ in chosen}
    card = Path(args.dataset) / "CARD.md"
    page = audit.audit_page(f"{args.dataset} · {split}", [(records[i], q) for i, q in chosen],
                            card.read_text() if card.is_file() else "")
    audit.write_page(Path(args.out), page)
    print(f"{args.out}: {len(chosen)} of {checked} questions; {len(wrong)} answers disagree with their numbers")
    for entry in wrong[:10]:
        print(f"  {entry['id']}: {entry['problem']}")
    return {"page": args.out, "questions": len(chosen), "checked": checked, "wrong": len(wrong), "examples": wrong[:10]}


def _draw(found: dict[str, list[tuple[int, Question]]], limit: int, rng: np.random.Generator
          ) -> list[tuple[int, Question]]:
    """Questions of all types in turn, each type's in random order."""
    piles = {kind: [items[k] for k in rng.permutation(len(items))] for kind, items in sorted(found.items())}
    chosen: list[tuple[int, Question]] = []
    while len(chosen) < limit and any(piles.values()):
        for pile in piles.values():
            if pile and len(chosen) < limit:
                chosen.append(pile.pop())
    return chosen


if __name__ == "__main__":
    cli.run(main)
