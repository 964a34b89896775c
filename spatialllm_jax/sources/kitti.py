"""KITTI object detection (label_2, calib, image_2) to scenes.

A label's x, y, z is the **bottom** centre in the rectified frame of camera 0; rotation_y gives the
heading (cos ry, 0, -sin ry). The picture is camera 2's: P2 = K [I | t], so centres move by K⁻¹ P2[:, 3].
The rectified cameras are level to within a degree, so gravity is +y.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from jaxtyping import Float

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import rotation_y, valid_box
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage
from spatialllm_jax.sources.fronts import NAMELESS, common_name, has_front
from spatialllm_jax.sources.loaded import LoadedScenes, Thresholds, camera_fault, thresholds

# "occluded": fully visible, partly, largely. 3 is "unknown": such objects are left out.
_VISIBILITY = {0: 1.0, 1: 0.6, 2: 0.3}
_UP = np.array([0.0, -1.0, 0.0])


def load(folder: str | Path, split: str = "train") -> LoadedScenes:
    """Reads all labelled images of a folder that holds label_2, calib and image_2 (or `training`).

    Args:
        split: "train" or "test", for the thresholds (KITTI's own test images have no labels).

    Raises:
        UserError: for a missing folder, image or calibration, or no usable object at all.
    """
    root = Path(folder)
    if (root / "training").is_dir():
        root = root / "training"
    for part in ("label_2", "calib", "image_2"):
        if not (root / part).is_dir():
            raise UserError(f"{root} has no folder {part}; name KITTI's object folder (with training/{part})")
    limits = thresholds(split)
    ignored: Counter[str] = Counter()
    scenes = []
    for label in sorted((root / "label_2").glob("*.txt")):
        scene = _scene(root, label, limits, ignored)
        if scene is None:
            ignored["image: no usable object"] += 1
        else:
            scenes.append(scene)
    if not scenes:
        raise UserError(f"{root / 'label_2'} has no label file with a usable object; use another folder")
    return LoadedScenes(tuple(scenes), dict(ignored))


def _scene(root: Path, label: Path, limits: Thresholds, ignored: Counter[str]) -> Scene | None:
    from PIL import Image

    image = next((p for e in ("png", "jpg") if (p := root / "image_2" / f"{label.stem}.{e}").is_file()), None)
    if image is None:
        raise UserError(f"image {root / 'image_2' / label.stem}.png of {label} is missing; fetch it")
    intrinsics, shift = read_calibration(root / "calib" / label.name)
    try:
        with Image.open(image) as picture:
            width, height = picture.size
    except OSError as error:
        raise UserError(f"image {image} is not a picture ({error}); fetch it again") from error
    fault = camera_fault(intrinsics, width, height)
    if fault:
        raise UserError(f"{root / 'calib' / label.name} is unusable ({fault}); fetch it again")
    objects: list[Object3D] = []
    hidden: set[str] = set()
    for line in label.read_text().splitlines():
        if not line.strip():
            continue
        category = common_name(line.split()[0])
        parsed = parse_label(line, shift, width, height, limits)
        if isinstance(parsed, str):
            ignored[f"object: {parsed}"] += 1
            hidden.add("*" if parsed in ("not cared about", "malformed") else category)
        else:
            objects.append(parsed)
    if not objects:
        return None
    return Scene(
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
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise UserError(f"calibration {path} is missing; fetch it") from None
    for line in lines:
        if line.startswith("P2:"):
            try:
                projection = np.array([float(v) for v in line.split()[1:]]).reshape(3, 4)
                return projection[:, :3], np.linalg.solve(projection[:, :3], projection[:, 3])
            except (ValueError, np.linalg.LinAlgError) as error:
                raise UserError(f"P2 in {path} is not a camera ({error}); fetch it again") from error
    raise UserError(f"{path} has no line P2; it is not a KITTI calibration")


def parse_label(
    line: str, shift: Float[np.ndarray, "3"], width: int, height: int, limits: Thresholds
) -> Object3D | str:
    """One line of label_2 as an object in camera 2's frame, or why it is left out."""
    fields = line.split()
    try:
        truncation, occluded = float(fields[1]), int(float(fields[2]))
        values = np.array([float(v) for v in fields[3:15]])
    except (ValueError, IndexError):
        return "malformed"
    if len(values) != 12:
        return "malformed"
    if fields[0] == "DontCare":
        return "not cared about"
    category = common_name(fields[0])
    if category in NAMELESS:
        return "class without a name"
    h, w, length = values[5:8]
    bottom, angle = values[8:11], values[11]
    heading = np.array([np.cos(angle), 0.0, -np.sin(angle)])
    if not np.isfinite(values).all():
        return "box: nan"
    box = Box3D(
        bottom - [0, h / 2, 0] + shift, np.array([length, h, w]), rotation_y(heading, _UP)
    )
    fault = valid_box(box)
    if fault:
        return f"box: {fault}"
    if box.center[2] <= 0:
        return "behind the camera"
    bbox = np.clip(values[1:5], 0, [width, height, width, height])
    tall = values[4] - values[2]
    if bbox[2] - bbox[0] < 1 or bbox[3] - bbox[1] < 1:
        return "2D box outside the image"
    if tall < limits.low * height:
        return "too small in the image"
    if tall >= limits.high * height:
        return "too tall for the image"
    if occluded not in _VISIBILITY:
        return "occlusion unknown"
    if truncation >= limits.truncation:
        return "truncated"
    if _VISIBILITY[occluded] <= limits.visibility:
        return "hidden"
    return Object3D(
        category, category, box, bbox, has_front("kitti", category), _VISIBILITY[occluded], max(truncation, 0.0)
    )
