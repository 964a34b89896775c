"""Accuracies with what a reader needs to trust them: n, 95 % intervals, chance, and paired comparisons."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

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

    def __str__(self) -> str:
        """"71.3 % [68.0, 74.4]"."""
        return f"{100 * self.acc:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(right: float, n: float, z: float = Z95) -> tuple[float, float]:
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


def clustered_error(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Standard error of the mean when values of one cluster (the questions about one picture) go together.

    The sandwich estimator with the usual correction G / (G - 1) for G clusters (Liang and Zeger 1986; what statsmodels
    computes for an intercept under cov_type="cluster"). Nan for fewer than two clusters.
    """
    n = len(values)
    average = sum(values) / n if n else math.nan
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - average
    count = len(sums)
    if count < 2:
        return math.nan
    return math.sqrt(count / (count - 1) * sum(total * total for total in sums.values())) / n


def wilson_clustered(right: Sequence[bool], clusters: Sequence[Hashable]) -> tuple[float, float]:
    """Wilson's interval for as many independent questions as the clustered ones are worth, never more than there are.

    Where all or none are right the clustered error says nothing; then every cluster counts once.
    """
    n, count = len(right), len(set(clusters))
    if not n:
        return 0.0, 1.0
    share, error = sum(right) / n, clustered_error([float(value) for value in right], clusters)
    if share in (0.0, 1.0) or count < 2:
        worth = float(count)
    else:
        worth = min(share * (1 - share) / error ** 2, n) if error > 0 else float(n)
    return wilson(share * worth, worth)


def accuracy_clustered(right: Sequence[bool] | np.ndarray, chance: float, clusters: Sequence[Hashable] | np.ndarray,
                       ) -> Accuracy:
    """The accuracy of verdicts of one chance level, its interval that of `wilson_clustered`; there is at least one."""
    verdicts, groups = np.asarray(right, bool).tolist(), np.asarray(clusters).tolist()
    return Accuracy(sum(verdicts) / len(verdicts), len(verdicts), *wilson_clustered(verdicts, groups), chance)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value that A and B are equally often right alone (McNemar 1947): a sign test.

    Args:
        only_a, only_b: questions that only A, only B got right.
    """
    n, least = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, k) for k in range(least + 1))     # whole numbers: exact, however many questions
    return min(1.0, 2 * tail / 2 ** n) if n else 1.0


def paired_bootstrap(differences: Sequence[float], clusters: Sequence[Hashable], *, samples: int = 10_000,
                     seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean difference, whole clusters drawn with replacement.

    Args:
        differences: right(B) - right(A) per question.
    """
    sums: dict[Hashable, list[float]] = {}
    for value, cluster in zip(differences, clusters, strict=True):
        entry = sums.setdefault(cluster, [0.0, 0.0])
        entry[0] += value
        entry[1] += 1
    table = np.array(list(sums.values())).reshape(-1, 2)
    if not len(table):
        return 0.0, 0.0
    rng, means = np.random.default_rng(seed), []
    for start in range(0, samples, 500):      # 500 at a time, so that thousands of clusters fit
        drawn = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=min(500, samples - start)) @ table
        means.append(drawn[:, 0] / drawn[:, 1])
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Median:
    """A median with its 95 % interval (`median_interval`) and the number of values."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """"24.4 [19.0, 34.3]"."""
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def median(values: Sequence[float] | np.ndarray) -> Median:
    """The median of values; nan for none."""
    low, high = median_interval(values)
    return Median(float(np.median(values)) if len(values) else math.nan, low, high, len(values))


def median_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Distribution-free interval of a median: the order statistics whose ranks a fair coin leaves between them.

    The number of values below the true median is binomial(n, 1/2); ranks are the innermost ones that cover `level`.
    With too few values (fewer than six at 95 %) it is the whole range; nan for none.
    """
    ordered = np.sort(np.asarray(values, float))
    n = len(ordered)
    if not n:
        return math.nan, math.nan
    spare, tail, rank = (1 - level) / 2, 0.0, 0
    log_half = n * math.log(0.5)
    while rank < n // 2:
        tail += math.exp(math.lgamma(n + 1) - math.lgamma(rank + 1) - math.lgamma(n - rank + 1) + log_half)
        if tail > spare:
            break
        rank += 1
    low = max(rank - 1, 0)
    return float(ordered[low]), float(ordered[n - 1 - low])
