"""The estimators of a rendered scene that know the truth, with as much noise as wanted: the engine's own measure."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from spatialllm_jax.scene.geometry import bbox_iou, viewpoint
from spatialllm_jax.sources.pseudo_labels.camera import DepthCalibrator
from spatialllm_jax.sources.pseudo_labels.config import PseudoLabelConfig
from spatialllm_jax.sources.pseudo_labels.interfaces import (
    Calibration,
    DepthMap,
    Detections,
    Estimators,
    Masks,
    Orientation,
    Picture,
)
from spatialllm_jax.sources.pseudo_labels.views import mask_box
from spatialllm_jax.sources.rendered.source import RenderedScene


@dataclasses.dataclass(frozen=True)
class Noise:
    """How wrong the estimators are; all zero is the truth.

    Attributes:
        depth_scale: standard deviation of a factor on a picture's whole depth.
        depth_pixel: standard deviation of a factor on each pixel's depth.
        mask: pixels by which masks are grown (shrunk if negative).
        orientation: standard deviation of the azimuth, degrees.
        gravity: degrees by which gravity is tilted, to a random side.
        ground: gravity is not told but found in the depth map (`camera.DepthCalibrator`); the focal length is told.
    """

    depth_scale: float = 0.0
    depth_pixel: float = 0.0
    mask: int = 0
    orientation: float = 0.0
    gravity: float = 0.0
    ground: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """All six interfaces at once, for one rendered scene. Each stage draws its noise from a stream of its own."""

    rendered: RenderedScene
    noise: Noise
    seed: int

    def estimators(self) -> Estimators:
        """The truth in the pipeline's form."""
        calibrator = DepthCalibrator(PseudoLabelConfig()) if self.noise.ground else self
        return Estimators(self, self, self, self, calibrator, self)

    def tags(self, image: Picture) -> tuple[str, ...]:
        """The categories in the scene."""
        return tuple(sorted({o.category for o in self.rendered.scene.objects}))

    def detect(self, image: Picture, tags: Sequence[str]) -> Detections:
        """The boxes around what is seen of each object."""
        found = np.array([mask_box(mask) for mask in self._masks])
        return Detections(found, np.ones(len(found)), tuple(o.category for o in self.rendered.scene.objects))

    def segment(self, image: Picture, boxes: Float[np.ndarray, "N 4"]) -> Masks:
        """The masks of the objects, grown or shrunk."""
        from scipy import ndimage

        masks = self._masks[[self._nearest(box) for box in boxes]]
        if self.noise.mask:
            change = ndimage.binary_dilation if self.noise.mask > 0 else ndimage.binary_erosion
            masks = np.array([change(mask, iterations=abs(self.noise.mask)) for mask in masks])
        return Masks(masks, np.ones(len(masks)))

    def depth(self, image: Picture) -> DepthMap:
        """The renderer's depth, wrong as a whole and pixel by pixel."""
        rng = self._rng(1)
        depth = self.rendered.depth * np.exp(self.noise.depth_scale * rng.standard_normal())
        if self.noise.depth_pixel:
            depth = depth * np.exp(self.noise.depth_pixel * rng.standard_normal(depth.shape))
        return DepthMap(depth, float(self.rendered.scene.camera.intrinsics[0, 0]))

    def calibrate(self, image: Picture, depth: DepthMap, masks: Bool[np.ndarray, "N H W"]) -> Calibration:
        """The camera, its gravity tilted."""
        camera = self.rendered.scene.camera
        gravity, side = np.asarray(camera.gravity, float), self._rng(2).standard_normal(3)
        side -= (side @ gravity) * gravity
        side /= np.linalg.norm(side)
        angle = np.radians(self.noise.gravity)
        return Calibration(camera.intrinsics, np.cos(angle) * gravity + np.sin(angle) * side, self.noise.gravity)

    def orient(self, image: Picture, boxes: Float[np.ndarray, "N 4"], labels: Sequence[str]
               ) -> list[Orientation | None]:
        """The viewpoints of things with a front, their azimuth off."""
        rng, found = self._rng(3), []
        off = self.noise.orientation * rng.standard_normal(len(self.rendered.scene.objects))
        for box in boxes:
            k = self._nearest(box)
            thing = self.rendered.scene.objects[k]
            azimuth, elevation, theta = viewpoint(thing.box)
            found.append(Orientation((azimuth + off[k]) % 360.0, elevation, theta, 1.0) if thing.has_front else None)
        return found

    @functools.cached_property
    def _masks(self) -> Bool[np.ndarray, "N H W"]:
        return np.stack([self.rendered.instances == k + 1 for k in range(len(self.rendered.scene.objects))])

    def _nearest(self, box: Float[np.ndarray, "4"]) -> int:
        return int(np.argmax([bbox_iou(box, mask_box(mask)) for mask in self._masks]))

    def _rng(self, stage: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, stage]))
