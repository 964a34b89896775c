"""How answers are read and compared: from a line of `predictions.jsonl` alone, so that it can be done again later."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from spatialllm_jax.evaluation import quantities
from spatialllm_jax.evaluation.parsing import parse_choice, parse_claim

Line = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One way of scoring.

    Attributes:
        read: line -> what its raw answer says, None when that cannot be told.
        right: (read, line) -> whether that is right; only called for what could be read.
        chance: share of right answers by uniform guessing, where the options do not tell.
    """

    read: Callable[[Line], Any]
    right: Callable[[Any, Line], bool]
    chance: float = 0.0


def _equal(read: Any, line: Line) -> bool:
    return read == line["answer"]


def _within_quarter(read: float, line: Line) -> bool:
    """SpatialRGPT-Bench: at most 25 % off."""
    return 0.75 * line["answer"] <= read <= 1.25 * line["answer"]


def hours_apart(a: int, b: int) -> int:
    """Hours between two clock directions, 0 to 6."""
    return min((a - b) % 12, (b - a) % 12)


def _normal(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s.]|\.(?!\d)", " ", text.lower()).split())


RULES: dict[str, Rule] = {
    "choice": Rule(lambda line: parse_choice(line["raw"], line["options"]), _equal),
    "yes_no": Rule(lambda line: parse_choice(line["raw"], line["options"]), _equal),
    "claim": Rule(lambda line: parse_claim(line["raw"]), _equal),
    "metres": Rule(lambda line: quantities.parse_metres(line["raw"]), _within_quarter),
    "clock": Rule(lambda line: quantities.parse_clock(line["raw"]),
                  lambda read, line: hours_apart(read, line["answer"]) <= 1, chance=3 / 12),
    "phrase": Rule(lambda line: quantities.parse_phrase(line["raw"]),
                   lambda read, line: quantities.same_phrase(read, line["answer"])),
    "exact": Rule(lambda line: _normal(line["raw"]) or None, lambda read, line: read == _normal(line["answer"])),
}
CHOICES = ("choice", "yes_no", "claim")   # rules whose reading is the index of an option


def verdict(line: Line) -> dict[str, Any]:
    """What can be told from a line: "choice" or "parsed", and "right" (None where the benchmark gives no answer).

    A line with likelihoods keeps its choice; a generated answer is read again from "raw".
    """
    rule = RULES[line["rule"]]
    read = line["choice"] if line.get("scores") else rule.read(line)
    right = None if line["answer"] is None else read is not None and bool(rule.right(read, line))
    return {"choice" if line["rule"] in CHOICES else "parsed": read, "right": right}


def chance(line: Line) -> float:
    """Expected score of uniform guessing."""
    if line.get("chance") is not None:
        return float(line["chance"])
    return 1 / len(line["options"]) if line["rule"] in CHOICES else RULES[line["rule"]].chance


def was_read(line: Line) -> bool:
    """Whether the answer could be read."""
    return line.get("choice", line.get("parsed")) is not None
