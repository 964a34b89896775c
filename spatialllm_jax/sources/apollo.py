"""Apollo Synthetic (Baidu, 2019) to scenes: 1920x1080 renderings of streets with object ground truth in text.

Layout: `RGB/<time>/<weather>/<degradation>/<pedestrians>/<barriers>/<map>/<traffic>/0000000.jpg` beside
`Object_GroundTruth/<the same>/0000000.txt`; a part of the dataset will do.

A line has 17 fields: frame, id, type, truncated, occluded, alpha, 2D box (4), **height, length, width**, x, y, z
of the box's **centre** in the camera frame (+x right, +y down, +z forward, metres), rotation_y as in KITTI.
This order and the centre are what public converters of the dataset read; the camera (focal length 2015 px,
principal point 960, 540) is the one that published loaders hard-code, and it reproduces the pixels of
published lane annotations to within two pixels. **Not verified** against the dataset itself: the scale of
`occluded` (whole numbers are read as KITTI's levels, decimals as the hidden share), the list of types,
and that no further field follows. `camera.json` in the folder, {"K": 3x3}, replaces the camera.

The camera looks a few degrees down and its pitch is not in these files, so gravity is estimated from where
vehicles and people stand (`scene.geometry.gravity_from_ground`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import gravity_from_ground
from spatialllm_jax.scene.types import Camera, Object3D, Scene, SceneImage
from spatialllm_jax.sources.fronts import common_name
from spatialllm_jax.sources.kitti import VISIBILITY, Label, make_object, read_lines
from spatialllm_jax.sources.loaded import (
    LoadedScenes,
    Thresholds,
    camera_fault,
    collect,
    picture_size,
    some_scenes,
    thresholds,
)

LICENCE = "Apollo Synthetic's own terms (read them on Baidu Apollo's page)"

LABELS, PICTURES = "Object_GroundTruth", "RGB"
# Focal length and principal point of the published camera, for pictures of this size.
FOCAL, CENTER, SIZE = 2015.0, (960.0, 540.0), (1920, 1080)
# Types that public converters name -> what questions call them. Other types are left out and counted.
TYPES = {
    "Coupe": "car",
    "Hatchback": "car",
    "Sedan": "car",
    "SUV": "car",
    "Car": "car",
    "PickupTruck": "pickup truck",
    "Truck": "truck",
    "Van": "van",
    "Bus": "bus",
    "Cyclist": "cyclist",
    "Motorcyclist": "motorcyclist",
    "Pedestrian": "pedestrian",
}


def load(folder: str | Path, split: str = "train") -> LoadedScenes:
    """All scenes of a folder at once; see `read`."""
    return collect(read, folder, split)


def read(path: str, split: str, ignored: Counter[str]) -> Iterator[Scene]:
    """Reads every annotated picture below a folder that holds Object_GroundTruth and RGB.

    Args:
        path: the dataset's folder.
        split: chooses the thresholds alone; the dataset has no splits.
        ignored: counts what is left out, by reason.

    Raises:
        UserError: for a missing folder or image, a camera that cannot be right, or no usable object.
    """
    root = Path(path)
    for part in (LABELS, PICTURES):
        if not (root / part).is_dir():
            raise UserError(f"{root} has no folder {part}; name the folder that holds {LABELS} and {PICTURES}")
    camera = _camera_file(root / "camera.json")
    yield from some_scenes(_scenes(root, camera, thresholds(split), ignored), root / LABELS, ignored)


def _camera_file(path: Path) -> Float[np.ndarray, "3 3"] | None:
    if not path.exists():
        return None
    try:
        return np.array(json.loads(path.read_text())["K"], float).reshape(3, 3)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path} is not a camera ({error!r}); write {{"K": [[f, 0, x], [0, f, y], [0, 0, 1]]}}'
        ) from error


def default_camera(width: int, height: int) -> Float[np.ndarray, "3 3"]:
    """The published camera, scaled to pictures of another size."""
    x, y = width / SIZE[0], height / SIZE[1]
    return np.array([[FOCAL * x, 0, CENTER[0] * x], [0, FOCAL * y, CENTER[1] * y], [0, 0, 1]])


def _scenes(
    root: Path, camera: Float[np.ndarray, "3 3"] | None, limits: Thresholds, ignored: Counter[str]
) -> Iterator[Scene]:
    for label in sorted((root / LABELS).rglob("*.txt")):
        relative = label.relative_to(root / LABELS).with_suffix("")
        base = root / PICTURES / relative
        image = next((p for e in ("jpg", "png") if (p := base.with_name(f"{base.name}.{e}")).is_file()), None)
        if image is None:
            raise UserError(f"image {base}.jpg of {label} is missing; fetch it")
        width, height = picture_size(image)
        intrinsics = default_camera(width, height) if camera is None else camera
        fault = camera_fault(intrinsics, width, height)
        if fault:
            raise UserError(
                f"the camera of {image} is unusable ({fault}); write the right one to {root / 'camera.json'}"
            )
        objects: list[Object3D] = []
        hidden: set[str] = set()
        feet: list[Float[np.ndarray, "3"]] = []
        for line in read_lines(label):
            parsed = parse_label(line)
            thing = make_object(parsed, "apollo", 0.0, width, height, limits)
            if isinstance(thing, str):
                ignored[f"object: {thing}"] += 1
                hidden.add("*" if isinstance(parsed, str) else parsed.category)
            else:
                objects.append(thing)
                feet.append(thing.box.center + np.array([0, thing.box.size[1] / 2, 0]))
        if not objects:
            ignored["image: no usable object"] += 1
            continue
        yield Scene(
            # Frames are numbered anew in every folder, so the folders are part of the id.
            SceneImage(f"apollo-{'--'.join(relative.parts)}", path=str(image)),
            Camera(width, height, intrinsics, gravity_from_ground(np.array(feet))),
            tuple(objects),
            metric=True,
            source="apollo",
            setting="outdoor",
            hidden=tuple(sorted(hidden)),
        )


def parse_label(line: str) -> Label | str:
    """One line of object ground truth, or why it says nothing: "malformed" or "type unknown"."""
    fields = line.split()
    try:
        truncation, occluded = float(fields[3]), float(fields[4])
        values = np.array([float(v) for v in fields[5:17]])
    except (ValueError, IndexError):
        return "malformed"
    if len(values) != 12:
        return "malformed"
    if fields[2] not in TYPES:
        return "type unknown"
    height, length, width = values[5:8]
    visibility = VISIBILITY.get(int(occluded)) if fields[4].isdigit() else 1.0 - occluded
    if visibility is not None and not 0 <= visibility <= 1:
        return "malformed"
    return Label(
        common_name(TYPES[fields[2]]),
        truncation,
        visibility,
        values[1:5],
        np.array([length, height, width]),
        values[8:11],
        float(values[11]),
    )
