"""ImageNet3D (wufeim/imagenet3d) to scenes: poses of single objects in 200 categories of ImageNet pictures.

Layout: `images/<category>/<name>.JPEG`, `annotations/<category>/<name>.npz`, and
`lists/<category>_imagenet_{train,val}.txt` with a name a line. An annotation file holds a pickled list of dicts,
read without running it (`sources.restricted_pickle`).

Pose: in CAD space (front -y, left +x, up +z) the camera stands at distance * (cos e sin a, -cos e cos a, sin e)
and looks at the origin with focal length `viewport` px; the picture is then turned counter-clockwise by theta,
and the origin lies at (px, py). That is `scene.geometry.rotation_from_viewpoint` (angles here in radians, in
[0, 2π)), with one difference: ImageNet3D lets the optical axis go through each object, while here all objects
of a picture share one camera whose axis goes through its middle, and each object is turned with the ray to it.
What one sees of an object is the same; its pixels differ by the perspective of an off-centre object.

`distance` counts in the unit of each object's own CAD model: positions of two objects cannot be compared
(`Scene.shared_scale` False, not metric). Sizes are not annotated: `fit_size` makes boxes that cover the 2D
boxes, for display; nothing is asked about them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import back_project, rotation_between, rotation_from_viewpoint, valid_box
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage
from spatialllm_jax.sources.fronts import common_name, has_front
from spatialllm_jax.sources.loaded import (
    LoadedScenes,
    Thresholds,
    camera_fault,
    collect,
    inside,
    picture_size,
    some_scenes,
    thresholds,
)
from spatialllm_jax.sources.restricted_pickle import read_npz

LICENCE = "CC BY-NC 4.0 (ImageNet3D), and ImageNet's terms for its pictures"

# There is no test list: the val lists serve as one.
LISTS = {"train": "train", "val": "val", "test": "val"}
# The visible share that stands for an annotator's word; the levels are those of KITTI's "occluded".
STATUS = {"status_good": 1.0, "status_partially": 0.6, "status_barely": 0.3}


def load(folder: str | Path, split: str = "train") -> LoadedScenes:
    """All scenes of a folder at once; see `read`."""
    return collect(read, folder, split)


def read(path: str, split: str, ignored: Counter[str]) -> Iterator[Scene]:
    """Reads the pictures that the lists of a split name.

    Args:
        path: folder with images, annotations and lists.
        split: "train", or "val" and "test" for the val lists.
        ignored: counts what is left out, by reason.

    Raises:
        UserError: for a missing folder or list, missing files (before the first scene), an annotation
            file that is damaged or asks to run code, or no usable object at all.
    """
    root = Path(path)
    limits = thresholds(split)
    for part in ("images", "annotations", "lists"):
        if not (root / part).is_dir():
            raise UserError(f"{root} has no folder {part}; name ImageNet3D's folder (images, annotations, lists)")
    samples = _samples(root, LISTS[split])
    for part, suffix in (("images", "JPEG"), ("annotations", "npz")):
        files = [root / part / category / f"{name}.{suffix}" for category, name in samples]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(files)} files of {root / part} that the lists name are missing, the first is "
                f"{missing[0]}; fetch them"
            )
    yield from some_scenes(_scenes(root, samples, limits, ignored), root, ignored)


def _samples(root: Path, split: str) -> list[tuple[str, str]]:
    """(category folder, name) of all pictures that a split's lists name."""
    ending = f"_imagenet_{split}.txt"
    files = sorted((root / "lists").glob(f"*{ending}"))
    if not files:
        raise UserError(f"{root / 'lists'} has no list *{ending}; fetch the lists of ImageNet3D")
    result: dict[tuple[str, str], None] = {}
    for file in files:
        category = file.name.removesuffix(ending)
        for name in file.read_text(encoding="utf-8", errors="replace").split():
            inside(root / "images" / category, name)
            result[category, name] = None
    return list(result)


def _scenes(
    root: Path, samples: list[tuple[str, str]], limits: Thresholds, ignored: Counter[str]
) -> Iterator[Scene]:
    for folder, name in samples:
        image = root / "images" / folder / f"{name}.JPEG"
        entries = read_npz(root / "annotations" / folder / f"{name}.npz", "annotations")
        entries = list(entries) if isinstance(entries, (np.ndarray, list)) and np.ndim(entries) == 1 else [entries]
        width, height = picture_size(image)
        if any(_other_size(entry, width, height) for entry in entries):
            ignored["image: its size is not the annotation's"] += 1
            continue
        camera: Camera | None = None
        objects: list[Object3D] = []
        hidden: set[str] = set()
        for entry in entries:
            category = "*"
            try:
                category = common_name(str(entry.get("class", folder)))
                if str(entry.get("dense")) == "dense_yes":
                    hidden.add(category)  # more of its kind about, not all of them annotated
                reason = skip_reason(entry, limits)
                if reason is None and camera is None:
                    camera = _camera(entry, width, height)
                    reason = camera_fault(camera.intrinsics, width, height)
                    camera = None if reason else camera
                parsed = reason or _object(entry, category, camera, limits)
            except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError):
                parsed = "malformed"
            if isinstance(parsed, str):
                ignored[parsed if parsed.startswith("camera") else f"object: {parsed}"] += 1
                hidden.add(category)
            else:
                objects.append(parsed)
        if camera is None or not objects:
            ignored["image: no usable object"] += 1
            continue
        yield Scene(
            # Categories share pictures, each with its own annotations, so the category is part of the id.
            SceneImage(f"imagenet3d-{folder}--{name}", path=str(image)),
            camera,
            tuple(objects),
            metric=False,
            source="imagenet3d",
            hidden=tuple(sorted(hidden)),
            shared_scale=False,
        )


def skip_reason(entry: Mapping[str, Any], limits: Thresholds) -> str | None:
    """Why an annotation's own words rule it out, or None."""
    status = str(entry.get("object_status"))
    if status == "status_bad":
        return "pose cannot be seen"
    if status not in STATUS:
        return "status missing"
    if int(entry.get("ignore", 0)) > 0:
        return "ignored by its source"
    if "px" not in entry or "distance" not in entry:
        return "no pose"
    if not float(entry["distance"]) > 0:
        return "distance not positive"
    if not float(entry["viewport"]) > 0:
        return "viewport not positive"
    return "hidden" if STATUS[status] <= limits.visibility else None


def _other_size(entry: Any, width: int, height: int) -> bool:
    try:
        return (int(entry.get("width", width)), int(entry.get("height", height))) != (width, height)
    except (AttributeError, TypeError, ValueError):
        return False  # counted as malformed later


def _camera(entry: Mapping[str, Any], width: int, height: int) -> Camera:
    focal = float(entry["viewport"])
    return Camera(width, height, np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]))


def _object(entry: Mapping[str, Any], category: str, camera: Camera | None, limits: Thresholds) -> Object3D | str:
    """The object, or why its numbers cannot be used."""
    assert camera is not None
    azimuth, elevation, theta = (float(np.degrees(float(entry[key]))) for key in ("azimuth", "elevation", "theta"))
    focal = camera.intrinsics[0, 0]
    # Another viewport than the camera's is another focal length: moved, the object keeps its size in the picture.
    distance = float(entry["distance"]) * focal / float(entry["viewport"])
    pixel = np.array([float(entry["px"]), float(entry["py"])])
    full = np.array(entry["bbox"], float).reshape(4)
    if not np.isfinite([azimuth, elevation, theta, distance, *pixel, *full]).all():
        return "box: nan"
    bbox = np.clip(full, 0, [camera.width, camera.height, camera.width, camera.height])
    if bbox[2] - bbox[0] < 1 or bbox[3] - bbox[1] < 1:
        return "2D box outside the image"
    if full[3] - full[1] < limits.low * camera.height:
        return "too small in the image"
    ray = back_project(pixel, np.array(1.0), camera.intrinsics)
    ray = ray / np.linalg.norm(ray)
    rotation = rotation_from_viewpoint(azimuth, elevation, theta, ray)
    on_axis = rotation_between(ray, np.array([0.0, 0.0, 1.0])) @ rotation
    size = fit_size(on_axis, distance / focal * (full[2:] - full[:2]))
    box = Box3D(ray * distance, size, rotation)
    fault = valid_box(box)
    if fault:
        return f"box: {fault}"
    return Object3D(
        category,
        category,
        box,
        bbox,
        has_front("imagenet3d", category),
        STATUS[str(entry["object_status"])],
    )


def fit_size(rotation: Float[np.ndarray, "3 3"], extent: Float[np.ndarray, "2"]) -> Float[np.ndarray, "3"]:
    """Size (length, height, width) of a box on the optical axis whose silhouette is `extent` wide and high.

    Far away, a box spans sum_k |R[0, k]| size[k] across and the same with R[1] down. Two equations for
    three unknowns: the footprint is taken as a square. Where the solution is no box (seen from where
    height and footprint cannot be told apart), it is a cube of the right mean extent.
    """
    span = np.abs(rotation[:2])
    matrix = np.stack([span[:, 0] + span[:, 2], span[:, 1]], axis=1)
    if abs(np.linalg.det(matrix)) > 1e-6:
        side, tall = np.linalg.solve(matrix, extent)
        if min(side, tall) > 0.1 * max(side, tall):
            return np.array([side, tall, side])
    return np.full(3, extent.sum() / span.sum())
