"""Orientation from estimators that look at one object at a time: by crops, or by boxes as this project's own does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float

from spatialllm_jax.sources.crops import square_crop
from spatialllm_jax.sources.pseudo_labels.interfaces import Orientation, Picture, PoseEstimator


@dataclasses.dataclass(frozen=True)
class CroppedOrientation:
    """An `OrientationEstimator` from an estimator of single crops.

    Attributes:
        margin: side of the crops over the longer side of their boxes (`sources.crops`).
        fronts: categories that are looked at at all; () is all of them.
    """

    estimator: PoseEstimator
    margin: float = 1.1
    fronts: tuple[str, ...] = ()

    def orient(self, image: Picture, boxes: Float[np.ndarray, "N 4"], labels: Sequence[str]
               ) -> list[Orientation | None]:
        """See `interfaces.OrientationEstimator`."""
        return _where_fronts(labels, self.fronts, lambda asked: self.estimator.viewpoints(
            [square_crop(image, boxes[k], self.margin) for k in asked]))


class BoxPoses(Protocol):
    """Viewpoints of n objects (`pose.estimator.Poses`)."""

    @property
    def angles(self) -> Float[np.ndarray, "n 3"]:
        """Azimuth, elevation, theta in degrees."""
        ...

    @property
    def confidence(self) -> Float[np.ndarray, " n"]:
        """In [0, 1]."""
        ...


class BoxPoseEstimator(Protocol):
    """This project's pose estimator (`pose.estimator.Estimator`), seen from below it."""

    def estimate_boxes(self, image: Picture, bboxes: Float[np.ndarray, "n 4"]) -> BoxPoses:
        """Viewpoints of what the boxes show."""
        ...


@dataclasses.dataclass(frozen=True)
class BoxOrientation:
    """An `OrientationEstimator` from an estimator of boxes; `fronts` as in `CroppedOrientation`."""

    estimator: BoxPoseEstimator
    fronts: tuple[str, ...] = ()

    def orient(self, image: Picture, boxes: Float[np.ndarray, "N 4"], labels: Sequence[str]
               ) -> list[Orientation | None]:
        """See `interfaces.OrientationEstimator`."""
        def tell(asked: list[int]) -> list[Orientation | None]:
            told = self.estimator.estimate_boxes(image, boxes[asked])
            found = zip(told.angles.tolist(), told.confidence, strict=True)
            return [Orientation(azimuth, elevation, theta, float(sure)) for (azimuth, elevation, theta), sure in found]

        return _where_fronts(labels, self.fronts, tell)


def _where_fronts(labels: Sequence[str], fronts: tuple[str, ...],
                  tell: Callable[[list[int]], list[Orientation | None]]) -> list[Orientation | None]:
    """What `tell` says of the objects whose category has a front, by their indices; None of all others."""
    asked = [k for k, label in enumerate(labels) if not fronts or label in fronts]
    found: list[Orientation | None] = [None] * len(labels)
    for k, orientation in zip(asked, tell(asked) if asked else (), strict=True):
        found[k] = orientation
    return found
