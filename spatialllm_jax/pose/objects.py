"""Objects with known angles, from folders in ImageNet3D's format, and the square crops that show them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from spatialllm_jax.data import images
from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import viewpoint
from spatialllm_jax.scene.pose import mirrored
from spatialllm_jax.sources import crops, imagenet3d

# Moved and scaled this much at most, as a share of the crop's side: boxes that a detector draws are not exact.
JITTER = 0.08


@dataclasses.dataclass(frozen=True)
class PoseObject:
    """One object of one picture.

    Attributes:
        id: unique in its folder.
        path: of the picture.
        bbox: x1, y1, x2, y2 in pixels.
        angles: azimuth, elevation, theta in degrees, relative to the ray.
        flip: the picture is shown flipped left to right, and `angles` are those of the flipped one.
        jitter: whether the crop is a little off, always in the same way.
    """

    id: str
    path: str
    category: str
    bbox: tuple[float, float, float, float]
    angles: tuple[float, float, float]
    flip: bool = False
    jitter: bool = False

    def crop(self, size: int, context: float) -> UInt8[np.ndarray, "S S 3"]:
        """The square around the object at `size` pixels a side."""
        box = np.array(self.bbox)
        if self.jitter:
            rng = np.random.default_rng(int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:8], "big"))
            side = max(box[2] - box[0], box[3] - box[1])
            move, grow = rng.uniform(-JITTER, JITTER, 2) * side, rng.uniform(-JITTER, JITTER) * side
            box = box + np.concatenate([move - grow, move + grow])
        crop = square_crop(_decoded(self.path), box, size, context)
        return crop[:, ::-1] if self.flip else crop


@functools.lru_cache(maxsize=4)     # a picture's objects, and its flipped copies, follow each other
def _decoded(path: str) -> UInt8[np.ndarray, "H W 3"]:
    try:
        return images.decode(Path(path).read_bytes(), path)
    except OSError as error:
        raise UserError(f"image {path} cannot be read: {error.strerror or error}") from None


def square_crop(image: UInt8[np.ndarray, "H W 3"], bbox: Sequence[float] | Float[np.ndarray, "4"], size: int,
                context: float = 1.2) -> UInt8[np.ndarray, "S S 3"]:
    """The square around a 2D box (pixels), `context` times its longer side, at `size` pixels a side (bicubic).

    What lies outside of the picture has CLIP's mean colour, as padded pictures do elsewhere.

    Raises:
        UserError: the box is empty or lies outside of the picture.
    """
    height, width = image.shape[:2]
    x1, y1, x2, y2 = (float(v) for v in bbox)
    if not (x2 > x1 and y2 > y1 and x2 > 0 and y2 > 0 and x1 < width and y1 < height):
        raise UserError(f"box {x1:.0f}, {y1:.0f}, {x2:.0f}, {y2:.0f} shows nothing of a picture of {width} x {height} "
                        "pixels; give x1, y1, x2, y2 in pixels")
    crop = crops.square_crop(image, bbox, context, images.MEAN_COLOUR)
    if len(crop) == size:
        return crop
    return np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC))


def read(folder: str | Path, split: str, ignored: Counter[str] | None = None, *, fronts_only: bool = False,
         limit: int = 0) -> list[PoseObject]:
    """The objects of a folder's lists, in their order.

    Args:
        split: "train" or "val".
        ignored: counts what is left out, by reason.
        fronts_only: leave out categories without a semantic front (`sources.fronts`).
        limit: most objects; 0 takes all.

    Raises:
        UserError: see `sources.imagenet3d.read`; or no object is left.
    """
    found: list[PoseObject] = []
    ignored = Counter() if ignored is None else ignored
    for scene in imagenet3d.read(str(folder), split, ignored):
        for index, thing in enumerate(scene.objects):
            if fronts_only and not thing.has_front:
                ignored["object: no semantic front"] += 1
                continue
            x1, y1, x2, y2 = (float(v) for v in thing.bbox2d)
            assert scene.image.path is not None
            found.append(PoseObject(f"{scene.image.id}#{index}", scene.image.path, thing.category, (x1, y1, x2, y2),
                                    viewpoint(thing.box)))
            if len(found) == limit:
                return found
    if not found:
        raise UserError(f"{folder} has no object of a category with a front in its {split} lists; set fronts_only to "
                        "False")
    return found


def for_training(objects: Sequence[PoseObject], *, mirror: bool, jitter: bool) -> list[PoseObject]:
    """The objects, each followed by its mirror image where asked for, each crop a little off where asked for."""
    result = []
    for item, flipped in zip(objects, mirrored([item.angles for item in objects]).tolist(), strict=True):
        result.append(dataclasses.replace(item, jitter=jitter))
        if mirror:
            result.append(dataclasses.replace(item, id=f"{item.id}~", flip=True, jitter=jitter, angles=tuple(flipped)))
    return result
