"""KITTI object detection (label_2, calib, image_2) to scenes.

A label's x, y, z is the **bottom** centre in the rectified frame of camera 0; rotation_y gives the
heading (cos ry, 0, -sin ry). The picture is camera 2's: P2 = K [I | t], so centres move by K⁻¹ P2[:, 3].
The rectified cameras are level to within a degree, so gravity is +y.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import rotation_y, valid_box
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage
from spatialllm_jax.sources.fronts import NAMELESS, common_name, has_front
from spatialllm_jax.sources.loaded import (
    LoadedScenes,
    Thresholds,
    camera_fault,
    collect,
    picture_size,
    some_scenes,
    thresholds,
)

LICENCE = "CC BY-NC-SA 3.0 (KITTI)"

# "occluded": fully visible, partly, largely. 3 is "unknown": such objects are left out.
VISIBILITY: Mapping[int, float | None] = {0: 1.0, 1: 0.6, 2: 0.3, 3: None}
_UP = np.array([0.0, -1.0, 0.0])


def load(folder: str | Path, split: str = "train") -> LoadedScenes:
    """All scenes of a folder at once; see `read`."""
    return collect(read, folder, split)


def read(path: str, split: str, ignored: Counter[str]) -> Iterator[Scene]:
    """Reads the labelled images of a folder that holds label_2, calib and image_2 (or `training`).

    Args:
        path: KITTI's object folder.
        split: chooses the thresholds alone (KITTI's own test images have no labels).
        ignored: counts what is left out, by reason.

    Raises:
        UserError: for a missing folder, image or calibration, or no usable object at all.
    """
    root = Path(path)
    if (root / "training").is_dir():
        root = root / "training"
    for part in ("label_2", "calib", "image_2"):
        if not (root / part).is_dir():
            raise UserError(f"{root} has no folder {part}; name KITTI's object folder (with training/{part})")
    yield from some_scenes(_scenes(root, thresholds(split), ignored), root / "label_2", ignored)


def _scenes(root: Path, limits: Thresholds, ignored: Counter[str]) -> Iterator[Scene]:
    for label in sorted((root / "label_2").glob("*.txt")):
        stem = root / "image_2" / label.stem
        image = next((p for e in ("png", "jpg") if (p := stem.with_name(f"{stem.name}.{e}")).is_file()), None)
        if image is None:
            raise UserError(f"image {stem}.png of {label} is missing; fetch it")
        intrinsics, shift = read_calibration(root / "calib" / label.name)
        width, height = picture_size(image)
        fault = camera_fault(intrinsics, width, height)
        if fault:
            raise UserError(f"{root / 'calib' / label.name} is unusable ({fault}); fetch it again")
        objects: list[Object3D] = []
        hidden: set[str] = set()
        for line in read_lines(label):
            parsed = parse_label(line)
            thing = make_object(parsed, "kitti", shift, width, height, limits)
            if isinstance(thing, str):
                ignored[f"object: {thing}"] += 1
                hidden.add("*" if isinstance(parsed, str) else parsed.category)
            else:
                objects.append(thing)
        if not objects:
            ignored["image: no usable object"] += 1
            continue
        yield Scene(
            SceneImage(f"kitti-{label.stem}", path=str(image)),
            Camera(width, height, intrinsics, -_UP),
            tuple(objects),
            metric=True,
            source="kitti",
            setting="outdoor",
            hidden=tuple(sorted(hidden)),
        )


def read_calibration(path: Path) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    """(K of camera 2, shift from camera 0's frame to camera 2's). Raises UserError when there is no P2."""
    if not path.is_file():
        raise UserError(f"calibration {path} is missing; fetch it")
    for line in read_lines(path):
        if line.startswith("P2:"):
            try:
                projection = np.array([float(v) for v in line.split()[1:]]).reshape(3, 4)
                return projection[:, :3], np.linalg.solve(projection[:, :3], projection[:, 3])
            except (ValueError, np.linalg.LinAlgError) as error:
                raise UserError(f"P2 in {path} is not a camera ({error}); fetch it again") from error
    raise UserError(f"{path} has no line P2; it is not a KITTI calibration")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank. Raises UserError when it is not text."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}); fetch it again") from error


@dataclasses.dataclass(frozen=True, eq=False)
class Label:
    """One labelled object, in the frame of the annotations.

    Attributes:
        category: as questions speak of it.
        truncation: share outside the image, 0 to 1.
        visibility: visible share, or None when it is unknown.
        bbox: x1, y1, x2, y2 in pixels, not clipped.
        size: (length, height, width) in metres.
        center: of the box, metres.
        angle: rotation_y in radians.
    """

    category: str
    truncation: float
    visibility: float | None
    bbox: Float[np.ndarray, "4"]
    size: Float[np.ndarray, "3"]
    center: Float[np.ndarray, "3"]
    angle: float


def parse_label(line: str) -> Label | str:
    """One line of label_2, or why it says nothing: "malformed" or "not cared about"."""
    fields = line.split()
    try:
        truncation, occluded = float(fields[1]), int(float(fields[2]))
        values = np.array([float(v) for v in fields[3:15]])
    except (ValueError, IndexError, OverflowError):
        return "malformed"
    if len(values) != 12:
        return "malformed"
    if fields[0] == "DontCare":
        return "not cared about"
    height, width, length = values[5:8]
    return Label(
        common_name(fields[0]),
        truncation,
        VISIBILITY.get(occluded),
        values[1:5],
        np.array([length, height, width]),
        values[8:11] - [0, height / 2, 0],
        float(values[11]),
    )


def make_object(
    label: Label | str,
    source: str,
    shift: Float[np.ndarray, "3"] | float,
    width: int,
    height: int,
    limits: Thresholds,
) -> Object3D | str:
    """The labelled object moved by `shift` into the frame of the picture's camera, or why it is left out."""
    if isinstance(label, str):
        return label
    if label.category in NAMELESS:
        return "class without a name"
    if not (np.isfinite(label.bbox).all() and np.isfinite([label.angle, label.truncation]).all()):
        return "box: nan"
    heading = np.array([np.cos(label.angle), 0.0, -np.sin(label.angle)])
    box = Box3D(label.center + shift, label.size, rotation_y(heading, _UP))
    fault = valid_box(box)
    if fault:
        return f"box: {fault}"
    if box.center[2] <= 0:
        return "behind the camera"
    bbox = np.clip(label.bbox, 0, [width, height, width, height])
    tall = label.bbox[3] - label.bbox[1]
    if bbox[2] - bbox[0] < 1 or bbox[3] - bbox[1] < 1:
        return "2D box outside the image"
    if tall < limits.low * height:
        return "too small in the image"
    if tall >= limits.high * height:
        return "too tall for the image"
    if label.visibility is None:
        return "occlusion unknown"
    if label.truncation >= limits.truncation:
        return "truncated"
    if label.visibility <= limits.visibility:
        return "hidden"
    return Object3D(
        label.category,
        label.category,
        box,
        bbox,
        has_front(source, label.category),
        label.visibility,
        max(label.truncation, 0.0),
    )
