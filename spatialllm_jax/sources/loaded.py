"""What the annotation sources share: how they are read, thresholds, and checks of cameras, paths and pictures."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.types import Scene


@dataclasses.dataclass(frozen=True)
class LoadedScenes:
    """Scenes in the order of the annotations, and how many annotations were left out, by reason."""

    scenes: tuple[Scene, ...]
    ignored: Mapping[str, int]


# (path, split, ignored) -> scenes one by one; counts what it leaves out in `ignored`, by reason, as it goes,
# and raises UserError for files that cannot be used, at the end too (no usable object at all).
Reader = Callable[[str, str, Counter[str]], Iterator[Scene]]


def collect(read: Reader, path: str | Path, split: str) -> LoadedScenes:
    """All scenes of a source at once."""
    ignored: Counter[str] = Counter()
    scenes = tuple(read(str(path), split, ignored))
    return LoadedScenes(scenes, dict(ignored))


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Omni3D's own limits: objects at or beyond them are ignored.

    Attributes:
        truncation: at or above.
        visibility: at or below.
        low, high: 2D height as a share of the image's: below, at or above.
        depth_error: above.
    """

    truncation: float
    visibility: float
    low: float = 0.05
    high: float = 1.5
    depth_error: float = 0.5


# Omni3D trains on its train and val files and judges on test alone.
THRESHOLDS = {"train": Thresholds(0.75, 0.25), "val": Thresholds(0.75, 0.25), "test": Thresholds(0.333, 0.333)}


def thresholds(split: str) -> Thresholds:
    """The limits of a split. Raises UserError for a split other than train, val and test."""
    if split not in THRESHOLDS:
        raise UserError(f"split {split!r} of the annotations is unknown; choose train, val or test")
    return THRESHOLDS[split]


def some_scenes(scenes: Iterable[Scene], path: str | Path, ignored: Mapping[str, int]) -> Iterator[Scene]:
    """The same scenes; raises UserError at the end when there was none, with the commonest reasons."""
    found = False
    for scene in scenes:
        found = True
        yield scene
    if not found:
        common = Counter(ignored).most_common(3)
        reasons = ", ".join(f"{reason}: {count}" for reason, count in common) or "it holds no annotation"
        raise UserError(f"{path} has no image with a usable object ({reasons}); use another file or folder")


def camera_fault(intrinsics: Float[np.ndarray, "3 3"], width: int, height: int) -> str | None:
    """Why a camera cannot be right, or None."""
    if intrinsics.shape != (3, 3) or not np.isfinite(intrinsics).all():
        return "camera: not a finite 3x3 matrix"
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    if width <= 0 or height <= 0:
        return "camera: no image size"
    if not (0.1 * width < fx < 20 * width and 0.1 * height < fy < 20 * height * max(1, width / height)):
        return "camera: absurd focal length"
    if not (-width < cx < 2 * width and -height < cy < 2 * height):
        return "camera: absurd principal point"
    return None


def inside(root: Path, name: str) -> Path:
    """`root / name`, which must stay inside `root`. Raises UserError otherwise.

    Symbolic links are followed: Omni3D's own instructions link its images into place.
    """
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
        raise UserError(f"image path {name!r} leaves the folder {root}; paths in annotations must stay inside")
    return root / name


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) from a picture's header. Raises UserError when it is missing or not a picture."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.size
    except FileNotFoundError:
        raise UserError(f"image {path} is missing; fetch it") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"image {path} is not a picture ({error}); fetch it again") from error
