"""`predictions.jsonl`: one line per answered question, written as they come, and read again after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation import rules
from spatialllm_jax.evaluation.items import Item
from spatialllm_jax.whole_files import write_whole

NEEDED = ("id", "image", "type", "group", "rule", "options", "answer", "raw")


def line_of(item: Item, raw: str, scores: Sequence[float] = (), usage: Sequence[int] = ()) -> dict[str, Any]:
    """An answered item: all that scoring needs, so that neither the model nor the pictures are wanted again.

    Args:
        raw: the generated text; of scored options, the likeliest one's text.
        scores: log-likelihood per option, () for a generated answer.
        usage: tokens in and out, where an endpoint counted them.
    """
    line: dict[str, Any] = {
        "id": item.id, "image": item.image_id, "type": item.type, "group": item.group, "rule": item.rule,
        "prompt": item.prompt, "options": list(item.options), "answer": item.answer}
    if scores:
        line |= {"choice": max(range(len(scores)), key=lambda k: scores[k])}
        raw = item.options[line["choice"]]
    line["raw"] = raw
    line["scores"] = [round(score, 5) for score in scores]
    line |= rules.verdict(line)
    optional = {key: getattr(item, key) for key in ("chance", "cluster", "circle", "flip", "whole")}
    line |= {key: value for key, value in optional.items() if value not in (None, "")}
    if item.more:
        line["images"] = [name for name, _ in item.pictures]
    if item.extra:
        line["extra"] = dict(item.extra)
    if usage:
        line["usage"] = list(usage)
    return line


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, without a last one that a kill cut short.

    Raises:
        UserError: the file is missing, or a line is none of ours.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); run launch.evaluate first") from None
    lines = []
    for number, part in enumerate(text.split(b"\n")[:-1], 1):
        try:
            line = json.loads(part)
            missing = [key for key in NEEDED if key not in line]
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError):
            line, missing = None, ["JSON"]
        if missing:
            raise UserError(f"{path} line {number} lacks {missing[0]!r}; move the file away and evaluate again")
        lines.append(line)
    return lines


def rescored(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines with their answers read again by the rules of today."""
    return [{**line, **rules.verdict(line)} for line in lines]


def mend(path: Path) -> None:
    """Cuts off a last line without an end, so that what is appended begins on a line of its own."""
    if path.exists():
        text = path.read_bytes()
        if (end := text.rfind(b"\n") + 1) < len(text):
            with path.open("r+b") as file:
                file.truncate(end)


def append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Adds lines, on disk when this returns."""
    with path.open("ab") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def set_aside(folder: Path, settings: Mapping[str, Any]) -> Path | None:
    """Remembers in `run.json` what a folder's answers are of; moves answers of anything else into a folder beside them.

    Returns:
        That folder, or None when there was nothing to move.
    """
    file = folder / "run.json"
    try:
        known = json.loads(file.read_text()) if file.exists() else None
    except json.JSONDecodeError:
        known = None
    # Through JSON, since lists and tuples are the same there.
    wanted, old = json.loads(json.dumps(settings)), sorted(folder.glob("predictions*.jsonl"))
    moved: Path | None = None
    if known != wanted and old:
        number = 1 + sum(1 for _ in folder.glob("earlier-*"))
        moved = folder / f"earlier-{number}"
        moved.mkdir()
        for found in [*old, *folder.glob("scores.json"), *([file] if file.exists() else [])]:
            os.replace(found, moved / found.name)
    write_whole(file, json.dumps(wanted, indent=1))
    return moved
