"""Ridge regression in closed form over a path of penalties, chosen on training pictures that are set aside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

# Of standardised features, half a decade apart. Encoders differ in width, so each probe chooses its own.
PENALTIES = tuple(float(p) for p in 10 ** np.arange(1.0, 6.6, 0.5))
ASIDE = 0.25    # share of the training pictures on which a penalty is chosen


class Path:
    """Solutions of one design matrix for any penalty: one decomposition of its smaller Gram matrix.

    Columns are brought to mean 0 and variance 1 and targets to mean 0 first, so that the intercept is not penalised.
    """

    def __init__(self, x: Float[np.ndarray, "n F"]):
        self._mean, self._scale = x.mean(0), x.std(0) + 1e-3
        self._x = (x - self._mean) / self._scale
        self._dual = len(x) < x.shape[1]
        gram = self._x @ self._x.T if self._dual else self._x.T @ self._x
        self._values, self._vectors = np.linalg.eigh(gram.astype(np.float64))

    def predict(self, y: Float[np.ndarray, "n t"], x: Float[np.ndarray, "m F"], penalty: float,
                ) -> Float[np.ndarray, "m t"]:
        """What the fit to targets `y` says of the rows `x`."""
        centre = y.mean(0)
        fitted = y - centre if self._dual else self._x.T @ (y - centre)
        solved = self._vectors @ ((self._vectors.T @ fitted) / (np.maximum(self._values, 0.0) + penalty)[:, None])
        x = (x - self._mean) / self._scale
        return (x @ self._x.T if self._dual else x) @ solved + centre


def fit_predict(x: Float[np.ndarray, "n F"], targets: Sequence[Float[np.ndarray, "n t"]],
                pictures: Int[np.ndarray, " n"], train: Bool[np.ndarray, " n"]) -> list[Float[np.ndarray, "m t"]]:
    """Predictions for the rows outside `train`, per target, each with the penalty that was best for it.

    Args:
        pictures: what shows each row: no picture is both fitted to and chosen by.
    """
    known = np.unique(pictures[train])
    aside = np.isin(pictures, known[int(len(known) * (1 - ASIDE)):]) & train
    first = Path(x[train & ~aside])

    def loss(y: np.ndarray, penalty: float) -> float:
        return float(np.square(first.predict(y[train & ~aside], x[aside], penalty) - y[aside]).sum())

    best = [PENALTIES[int(np.argmin([loss(y, penalty) for penalty in PENALTIES]))] for y in targets]
    whole = Path(x[train])
    return [whole.predict(y[train], x[~train], penalty) for y, penalty in zip(targets, best, strict=True)]
