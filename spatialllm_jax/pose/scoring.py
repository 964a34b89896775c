"""How good estimated poses are: the error of ImageNet3D, with intervals, per category, against a constant guess."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from spatialllm_jax.evaluation.statistics import Accuracy, Median, accuracy_clustered, median
from spatialllm_jax.models.linear import Params
from spatialllm_jax.models.pose import PoseConfig, apply_head, estimate
from spatialllm_jax.pose.features import Stored
from spatialllm_jax.pose.objects import PoseObject
from spatialllm_jax.scene.pose import circular_difference, pose_errors, rotations_from_angles

LEVELS = {"acc_30": 30.0, "acc_10": 10.0}    # degrees: pi / 6 and pi / 18
_BATCH = 64
_CANDIDATES = 300     # poses of the training set among which the best constant guess is sought


@dataclasses.dataclass(frozen=True)
class PoseScore:
    """Scores of a set of objects.

    Attributes:
        n: objects.
        error: median pose error in degrees, ||log(R1^T R2)||_F / sqrt(2).
        azimuth: median error of the azimuth alone, degrees.
        acc_30, acc_10: share of errors below pi / 6 and pi / 18; `chance` is the constant guess's share.
    """

    n: int
    error: Median
    azimuth: float
    acc_30: Accuracy
    acc_10: Accuracy

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class PoseScores:
    """Scores of an estimator.

    Attributes:
        overall: all objects.
        categories: by category.
        sure, unsure: the halves of higher and of lower confidence.
        confidence: its mean over all objects; well calibrated, it is near `overall.acc_30`.
        constant: of always giving the one pose that serves the training set best.
    """

    overall: PoseScore
    categories: Mapping[str, PoseScore]
    sure: PoseScore
    unsure: PoseScore
    confidence: float
    constant: PoseScore

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return dataclasses.asdict(self)


def score(found: Float[np.ndarray, "n 3"], true: Float[np.ndarray, "n 3"], pictures: Sequence[str],
          constant: Float[np.ndarray, " 3"]) -> PoseScore:
    """Scores of angles in degrees.

    Args:
        pictures: what shows each object: objects of one picture succeed or fail together.
        constant: angles of the constant guess.
    """
    real = rotations_from_angles(true)
    errors = pose_errors(rotations_from_angles(found), real)
    guessed = pose_errors(np.repeat(rotations_from_angles(constant[None]), len(real), axis=0), real)
    return PoseScore(len(errors), median(errors),
                     float(np.median(np.abs(circular_difference(found[:, 0], true[:, 0])))),
                     *(accuracy_clustered(errors < limit, float(np.mean(guessed < limit)), pictures)
                       for limit in LEVELS.values()))


def best_constant(angles: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " 3"]:
    """The pose of a training set that lies within pi / 6 of most others, among evenly drawn candidates."""
    drawn = angles[np.linspace(0, len(angles) - 1, min(_CANDIDATES, len(angles))).astype(int)]
    rotations = rotations_from_angles(drawn)
    near = [(pose_errors(np.repeat(one[None], len(rotations), axis=0), rotations) < LEVELS["acc_30"]).sum()
            for one in rotations]
    return drawn[int(np.argmax(near))]


def scores(found: Float[np.ndarray, "n 3"], confidence: Float[np.ndarray, " n"], objects: Sequence[PoseObject],
           train_angles: Float[np.ndarray, "m 3"]) -> PoseScores:
    """All scores of estimates (angles in degrees, their confidence) of these objects."""
    true, names = np.array([item.angles for item in objects]), np.array([item.category for item in objects])
    constant = best_constant(train_angles)

    def part(rows: np.ndarray, guess: np.ndarray | None = None) -> PoseScore:
        given = found[rows] if guess is None else np.repeat(guess[None], len(rows), axis=0)
        return score(given, true[rows], [objects[row].path for row in rows], constant)

    everything, order = np.arange(len(true)), np.argsort(-confidence, kind="stable")
    half = -(-len(order) // 2)
    categories = {name: part(np.flatnonzero(names == name)) for name in sorted(set(names.tolist()))}
    return PoseScores(part(everything), categories, part(order[:half]),
                      part(order[half:] if len(order) > 1 else order), float(np.mean(confidence)),
                      part(everything, constant))


def evaluate(config: PoseConfig, head: Params, source: Stored, train_angles: Float[np.ndarray, "m 3"]) -> PoseScores:
    """Scores of a head on stored features."""
    run = jax.jit(lambda params, tokens: estimate(apply_head(config, params, tokens), config))
    angles, confidence = [], []
    number = len(source.objects)
    for start in range(0, number, _BATCH):
        rows = np.minimum(np.arange(start, start + _BATCH), number - 1)
        found = run(head, source.rows(rows))
        angles.append(np.asarray(found.angles))
        confidence.append(np.asarray(found.confidence))
    return scores(np.concatenate(angles)[:number], np.concatenate(confidence)[:number], source.objects, train_angles)


def table(results: Mapping[str, PoseScores], *, categories: bool = True) -> str:
    """Estimators side by side, the constant guess last; then the categories of the first."""
    lines = [f"{'':24s}{'median error':>24s}{'acc pi/6':>24s}{'acc pi/18':>24s}{'azimuth':>10s}{'n':>7s}"]
    name, first = next(iter(results.items()))
    lines += [_line(key, found.overall) for key, found in results.items()]
    lines += [_line("one constant pose", first.constant)]
    lines += ["", f"{name}: by its own confidence (mean {100 * first.confidence:.1f} %)", _line("more confident half",
              first.sure), _line("less confident half", first.unsure)]
    if categories:
        lines += ["", f"{name}: by category", *(_line(key, found) for key, found in first.categories.items())]
    return "\n".join(lines)


def _line(name: str, found: PoseScore) -> str:
    return (f"{name[:24]:24s}{found.error!s:>24s}{found.acc_30!s:>24s}{found.acc_10!s:>24s}"
            f"{found.azimuth:10.1f}{found.n:7d}")
