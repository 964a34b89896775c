"""Which way objects are turned, for whoever has pictures and boxes: a saved estimator, in batches of one shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, UInt8

from spatialllm_jax.errors import UserError
from spatialllm_jax.models import store
from spatialllm_jax.models.linear import Params
from spatialllm_jax.models.pose import PoseConfig, apply_head, estimate
from spatialllm_jax.pose.features import read_tokens
from spatialllm_jax.pose.objects import square_crop
from spatialllm_jax.scene.pose import rays_through, rotations_from_angles
from spatialllm_jax.training.partition import unflatten


@dataclasses.dataclass(frozen=True)
class Poses:
    """Estimates of n objects.

    Attributes:
        angles: azimuth in [0, 360), elevation in [-90, 90], theta in [-180, 180), degrees, relative to the ray to the
            object (docs/conventions.md, Viewpoint).
        confidence: in [0, 1], the estimator's own chance of being less than 30 degrees off.
    """

    angles: Float[np.ndarray, "n 3"]
    confidence: Float[np.ndarray, " n"]

    def rotations(self, bboxes: Float[np.ndarray, "n 4"], intrinsics: Float[np.ndarray, "3 3"],
                  ) -> Float[np.ndarray, "n 3 3"]:
        """`Box3D.rotation` (camera frame), the rays taken through the middles of the 2D boxes."""
        boxes = np.asarray(bboxes, float).reshape(-1, 4)
        return rotations_from_angles(self.angles, rays_through((boxes[:, :2] + boxes[:, 2:]) / 2, intrinsics))


class Estimator:
    """Encoder and head in one jitted program.

    Args:
        params: {"encoder": ..., "head": ...}.
        batch_size: crops per call of the program; fewer are padded, so that nothing recompiles.
    """

    def __init__(self, config: PoseConfig, params: Params, batch_size: int = 16):
        self.config, self.batch_size = config, batch_size
        self._params = jax.device_put(params)
        self._run = jax.jit(lambda tree, pixels: estimate(
            apply_head(config, tree["head"], read_tokens(config, tree["encoder"], pixels)), config))

    @property
    def crop_size(self) -> int:
        """Side in pixels of the crops that `estimate` takes."""
        return self.config.encoder.image_size

    def estimate(self, crops: UInt8[np.ndarray, "n S S 3"]) -> Poses:
        """Poses of the objects in square crops (`pose.objects.square_crop` with the config's context)."""
        crops = np.asarray(crops)
        if crops.dtype != np.uint8 or crops.shape[1:] != (self.crop_size, self.crop_size, 3):
            raise UserError(f"crops are {crops.dtype} of shape {crops.shape}; give uint8 [n, {self.crop_size}, "
                            f"{self.crop_size}, 3]")
        angles, confidence = np.zeros((len(crops), 3)), np.zeros(len(crops))
        for rows in self._batches(len(crops)):
            found = self._run(self._params, crops[np.resize(rows, self.batch_size)])
            angles[rows], confidence[rows] = found.angles[:len(rows)], found.confidence[:len(rows)]
        return Poses(angles, confidence)

    def estimate_boxes(self, image: UInt8[np.ndarray, "H W 3"], bboxes: Sequence[Sequence[float]] | np.ndarray,
                       ) -> Poses:
        """Poses of what 2D boxes (x1, y1, x2, y2, pixels) of one picture show. Raises UserError for an empty box."""
        crops = [square_crop(image, box, self.crop_size, self.config.context) for box in bboxes]
        return self.estimate(np.stack(crops) if crops else np.zeros((0, self.crop_size, self.crop_size, 3), np.uint8))

    def _batches(self, number: int) -> Iterator[np.ndarray]:
        for start in range(0, number, self.batch_size):
            yield np.arange(start, min(start + self.batch_size, number))


def load(folder: str | Path, batch_size: int = 16) -> Estimator:
    """The estimator that `python -m launch.train --config=configs/pose.py` saved (RUN/head/model).

    Raises:
        UserError: there is none in the folder, or `batch_size` is not positive.
    """
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size} must be at least 1")
    config = store.load_config(folder)
    if not isinstance(config, PoseConfig):
        raise UserError(f"{folder} holds a {type(config).__name__}, no pose estimator; give the head/model folder of a "
                        "run of configs/pose.py")
    return Estimator(config, unflatten(store.load_params(folder)), batch_size)
