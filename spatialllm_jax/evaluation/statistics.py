"""Accuracies with what a reader needs to trust them: n, 95 % intervals, chance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

Z95 = 1.959963984540054


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share of right answers.

    Attributes:
        acc: in [0, 1].
        n: number of questions.
        low, high: 95 % Wilson score interval.
        chance: expected accuracy of uniform guessing among each question's options.
        parse_failures: generated answers that could not be read; counted as wrong.
    """

    acc: float
    n: int
    low: float
    high: float
    chance: float
    parse_failures: int = 0

    def as_dict(self) -> dict[str, float | int]:
        """Plain numbers, for JSON."""
        return dataclasses.asdict(self)


def wilson(right: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a binomial share (Wilson, 1927); (0, 1) when there is nothing."""
    if n == 0:
        return 0.0, 1.0
    share, square = right / n, z * z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy(right: Sequence[bool], chances: Sequence[float], parse_failures: int = 0) -> Accuracy:
    """The accuracy of a list of verdicts, given each question's chance level."""
    n = len(right)
    low, high = wilson(sum(right), n)
    return Accuracy(sum(right) / n if n else 0.0, n, low, high, sum(chances) / n if n else 0.0, parse_failures)


def macro(parts: Mapping[str, Accuracy]) -> float:
    """Unweighted mean of the parts' accuracies."""
    return sum(part.acc for part in parts.values()) / len(parts) if parts else 0.0
