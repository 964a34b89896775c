"""Orientation from estimators that look at one object at a time: by crops, or by boxes as this project's own does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8

from spatialllm_jax.sources.pseudo_labels.interfaces import Orientation, Picture, PoseEstimator


def square_crop(image: Picture, box: Float[np.ndarray, "4"], margin: float) -> UInt8[np.ndarray, "S S 3"]:
    """A square around a box, its longer side `margin` times as long; black where the picture ends."""
    side = max(round(float(max(box[2] - box[0], box[3] - box[1])) * margin), 1)
    left, top = round(float(box[0] + box[2]) / 2 - side / 2), round(float(box[1] + box[3]) / 2 - side / 2)
    crop = np.zeros((side, side, 3), np.uint8)
    height, width = image.shape[:2]
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if x2 > x1 and y2 > y1:
        crop[y1 - top: y2 - top, x1 - left: x2 - left] = image[y1:y2, x1:x2]
    return crop


@dataclasses.dataclass(frozen=True)
class CroppedOrientation:
    """An `OrientationEstimator` from an estimator of single crops.

    Attributes:
        margin: of the crops, see `square_crop`.
        fronts: categories that are looked at at all; () is all of them.
    """

    estimator: PoseEstimator
    margin: float = 1.1
    fronts: tuple[str, ...] = ()

    def orient(self, image: Picture, boxes: Float[np.ndarray, "N 4"], labels: Sequence[str]
               ) -> list[Orientation | None]:
        """See `interfaces.OrientationEstimator`."""
        asked = [k for k, label in enumerate(labels) if not self.fronts or label in self.fronts]
        found: list[Orientation | None] = [None] * len(labels)
        if asked:
            told = self.estimator.viewpoints([square_crop(image, boxes[k], self.margin) for k in asked])
            for k, orientation in zip(asked, told, strict=True):
                found[k] = orientation
        return found


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
        found: list[Orientation | None] = [None] * len(labels)
        asked = [k for k, label in enumerate(labels) if not self.fronts or label in self.fronts]
        if asked:
            told = self.estimator.estimate_boxes(image, boxes[asked])
            for k, angles, confidence in zip(asked, told.angles, told.confidence, strict=True):
                azimuth, elevation, theta = angles.tolist()
                found[k] = Orientation(azimuth, elevation, theta, float(confidence))
        return found
