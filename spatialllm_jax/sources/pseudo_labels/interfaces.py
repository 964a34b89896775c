"""The six questions that a picture without 3D annotation is asked (paper, Supplement A), as small interfaces.

Pictures are sRGB, uint8 [H, W, 3]. Pixels: centres at half-integers; boxes are x1, y1, x2, y2. Camera frame: +x right,
+y down, +z forward; lengths are metres, angles degrees. Anything that satisfies a protocol can take part; the real
ones are in `models`, the truth about rendered scenes in `truth`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, UInt8

Picture = UInt8[np.ndarray, "H W 3"]


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
    """Objects found by name.

    Attributes:
        boxes: pixels.
        scores: how sure the detector is, in [0, 1].
        labels: per box one of the names that were looked for.
    """

    boxes: Float[np.ndarray, "N 4"]
    scores: Float[np.ndarray, " N"]
    labels: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Masks:
    """Attributes:
    masks: the visible pixels of each object.
    scores: the segmenter's own estimate of their quality, in [0, 1].
    """

    masks: Bool[np.ndarray, "N H W"]
    scores: Float[np.ndarray, " N"]


@dataclasses.dataclass(frozen=True, eq=False)
class DepthMap:
    """Attributes:
    depth: z-depth in metres; NaN or infinite where unknown (sky).
    focal: pixels, where the estimator tells it; else None.
    """

    depth: Float[np.ndarray, "H W"]
    focal: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Attributes:
    intrinsics: K in pixels.
    gravity: unit vector in the camera frame that points down; None when nothing tells it.
    gravity_error: degrees by which it may be off.
    """

    intrinsics: Float[np.ndarray, "3 3"]
    gravity: Float[np.ndarray, "3"] | None
    gravity_error: float = 0.0


@dataclasses.dataclass(frozen=True)
class Orientation:
    """A viewpoint in ImageNet3D's convention (`scene.geometry.viewpoint`), relative to the ray to the object.

    Attributes:
        azimuth: 0 = the object faces the camera, 90 = its left side does; [0, 360).
        elevation: > 0 = seen from above; [-90, 90].
        theta: in-plane rotation, counter-clockwise; (-180, 180].
        confidence: that the object has a front and that this is it, in [0, 1].
    """

    azimuth: float
    elevation: float
    theta: float
    confidence: float


class Tagger(Protocol):
    """What there may be in a picture."""

    def tags(self, image: Picture) -> tuple[str, ...]:
        """Names to look for, without repetition; () when there is nothing to look for."""
        ...


class Detector(Protocol):
    """Where things are, by open-vocabulary names."""

    def detect(self, image: Picture, tags: Sequence[str]) -> Detections:
        """The objects of these names; N may be 0."""
        ...


class Segmenter(Protocol):
    """Which pixels belong to a thing."""

    def segment(self, image: Picture, boxes: Float[np.ndarray, "N 4"]) -> Masks:
        """One mask per box, in the same order; N > 0."""
        ...


class DepthEstimator(Protocol):
    """How far away each pixel is."""

    def depth(self, image: Picture) -> DepthMap:
        """Metric z-depth, one value per pixel of the picture."""
        ...


class Calibrator(Protocol):
    """The camera: intrinsics, and where down is."""

    def calibrate(self, image: Picture, depth: DepthMap, masks: Bool[np.ndarray, "N H W"]) -> Calibration:
        """The camera of a picture; `masks` are things, which are no ground to stand on."""
        ...


class OrientationEstimator(Protocol):
    """Which way things face."""

    def orient(self, image: Picture, boxes: Float[np.ndarray, "N 4"], labels: Sequence[str]
               ) -> list[Orientation | None]:
        """A viewpoint per box; None where the object has no front that could be told."""
        ...


class PoseEstimator(Protocol):
    """Orientation from crops alone, as a pose estimator gives it; `models.crops` makes it the above."""

    def viewpoints(self, crops: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[Orientation | None]:
        """A viewpoint per crop (square, the object in the middle)."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Estimators:
    """One of each; orientation may be missing, then no object has a front."""

    tagger: Tagger
    detector: Detector
    segmenter: Segmenter
    depth: DepthEstimator
    calibrator: Calibrator
    orientation: OrientationEstimator | None = None
