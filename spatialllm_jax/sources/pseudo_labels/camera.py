"""Calibration from what the depth estimator tells and the settings: no model of its own."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from spatialllm_jax.sources.pseudo_labels.config import PseudoLabelConfig
from spatialllm_jax.sources.pseudo_labels.gravity import ground_plane
from spatialllm_jax.sources.pseudo_labels.interfaces import Calibration, DepthMap, Picture
from spatialllm_jax.sources.pseudo_labels.points import mask_pixels, points_at, usable

_GROUND_POINTS = 6000
# What a camera that is said to be level may be off, where no ground confirms it; people tilt cameras by less.
_LEVEL_ERROR = 12.0


def pinhole(width: int, height: int, focal: float) -> Float[np.ndarray, "3 3"]:
    """K of a camera with square pixels whose axis meets the middle of the picture."""
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])


def focal_of(width: int, field_of_view: float) -> float:
    """Focal length in pixels of a horizontal field of view in degrees."""
    return width / 2 / float(np.tan(np.radians(field_of_view) / 2))


@dataclasses.dataclass(frozen=True)
class DepthCalibrator:
    """The focal length that the depth estimator saw (else the setting), and gravity from the ground plane."""

    config: PseudoLabelConfig

    def calibrate(self, image: Picture, depth: DepthMap, masks: Bool[np.ndarray, "N H W"]) -> Calibration:
        """See `interfaces.Calibrator`."""
        height, width = image.shape[:2]
        intrinsics = pinhole(width, height, depth.focal or focal_of(width, self.config.field_of_view))
        if self.config.gravity == "none":
            return Calibration(intrinsics, None)
        if self.config.gravity == "ground":
            free = usable(depth.depth) & ~masks.any(axis=0)
            plane = ground_plane(points_at(mask_pixels(free, _GROUND_POINTS), depth.depth, intrinsics))
            if plane is not None:
                return Calibration(intrinsics, -plane.normal, self.config.judging.gravity_error)
        return Calibration(intrinsics, np.array([0.0, 1.0, 0.0]), _LEVEL_ERROR)
