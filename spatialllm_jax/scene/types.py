"""The types that sources produce and questions consume.

Frames (see docs/conventions.md). Camera: +x right, +y down, +z forward. Object: front = +x,
left = +z, up = -y, the axes of Omni3D, so `Box3D.rotation[:, 0]` is the front in the camera frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from spatialllm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera.

    Attributes:
        width, height: of the image in pixels.
        intrinsics: K in pixels; pixel centres lie at half-integers.
        gravity: unit vector in the camera frame that points down, or None when unknown.
        gravity_error: degrees by which it may be off; 0 where it is annotated.
    """

    width: int
    height: int
    intrinsics: Float[np.ndarray, "3 3"]
    gravity: Float[np.ndarray, "3"] | None = None
    gravity_error: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Box3D:
    """An oriented box in the camera frame.

    Attributes:
        center: metres (or the source's unit where `Scene.metric` is False).
        size: extents along the object's own x, y, z axes: (length, height, width).
        rotation: columns are the object's axes in the camera frame: front, down, left.
    """

    center: Float[np.ndarray, "3"]
    size: Float[np.ndarray, "3"]
    rotation: Float[np.ndarray, "3 3"]


@dataclasses.dataclass(frozen=True, eq=False)
class Uncertainty:
    """How far an estimated box may be off. It widens the margins of every question about it (`scene.uncertainty`).

    Attributes:
        center: metres by which the centre may lie against (row 0) and along (row 1) the box's own axes; not negative.
        size: metres by which each extent may be off.
        turn: degrees between the true and the estimated rotation, at most.
        confidence: how much the estimate was believed, in (0, 1]; the widths above hold it already.
    """

    center: Float[np.ndarray, "2 3"]
    size: Float[np.ndarray, "3"]
    turn: float
    confidence: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Object3D:
    """One annotated object.

    Attributes:
        category: class name as questions speak of it ("television").
        phrase: how a person would refer to it ("red car"); equals `category` when nothing more is known.
        box: oriented 3D box, camera frame.
        bbox2d: x1, y1, x2, y2 in pixels, clipped to the image.
        has_front: whether the category has a semantic front *in this source*.
        visibility: visible share of the object in [0, 1]; 1 when the source does not say.
        truncation: share outside the image in [0, 1]; 0 when the source does not say.
        attributes: anything a source knows for sure, such as {"colour": "red"}.
        uncertainty: of a box that was estimated; None for annotated ones, which are taken at their word.
    """

    category: str
    phrase: str
    box: Box3D
    bbox2d: Float[np.ndarray, "4"]
    has_front: bool
    visibility: float = 1.0
    truncation: float = 0.0
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    uncertainty: Uncertainty | None = None


@dataclasses.dataclass(frozen=True)
class SceneImage:
    """Where a scene's picture is: a file, or bytes already encoded as JPEG or PNG.

    Attributes:
        id: unique within a dataset; splits and records are keyed by it.
    """

    id: str
    path: str | None = None
    encoded: bytes | None = dataclasses.field(default=None, repr=False)

    def read(self) -> bytes:
        """The encoded bytes. Raises UserError when the file is missing or unreadable."""
        if self.encoded is not None:
            return self.encoded
        if self.path is None:
            raise UserError(f"image {self.id!r} has neither a path nor bytes; give its source an image folder")
        try:
            return Path(self.path).read_bytes()
        except OSError as error:
            raise UserError(
                f"image {self.path} of scene {self.id!r} cannot be read: {error.strerror or error}"
            ) from error


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A picture, the camera that took it and the objects in it.

    Attributes:
        metric: whether lengths are metres; metric wording is used only then.
        source: name of the source ("rendered", "omni3d/kitti", "kitti", ...).
        setting: "indoor", "outdoor" or "" when unknown.
        hidden: categories of things in the picture that are not among `objects`, because they are too
            small, truncated or ignored. They make a name ambiguous ("the car") and a count unsafe; "*"
            stands for things whose category is unknown.
        shared_scale: whether lengths of different objects share one unit, so that their distances can be
            compared; False for ImageNet3D, whose distances count in each CAD model's own unit.
        upright: whether the boxes' -y axes are the objects' own "up". Then their mean stands in for an
            unknown gravity; otherwise nothing vertical is asked unless gravity is known.
    """

    image: SceneImage
    camera: Camera
    objects: tuple[Object3D, ...]
    metric: bool
    source: str
    setting: str = ""
    hidden: tuple[str, ...] = ()
    shared_scale: bool = True
    upright: bool = True
