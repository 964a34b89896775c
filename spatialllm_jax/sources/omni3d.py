"""Omni3D's JSON (facebookresearch/omni3d, DATA.md) to scenes.

COCO-like `{info, images, categories, annotations}`; boxes in the camera frame with `center_cam`,
`dimensions` = [w, h, l] and `R_cam`, whose first column is the front. -1 stands for "not available".
Gravity is not annotated: the boxes' own up axes give it (`scene.geometry.vertical`), but for Hypersim and
Objectron, where a box's axes need not include the vertical in a known place, all axes vote.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import valid_box, vote_up
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage
from spatialllm_jax.sources.fronts import NAMELESS, common_name, has_front
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

LICENCE = "CC BY-NC 4.0 (Omni3D; ARKitScenes CC BY-NC-SA 4.0), and the licences of its sub-datasets"

DATASETS = ("kitti", "nuscenes", "sunrgbd", "arkitscenes", "hypersim", "objectron")
_SETTINGS = {"kitti": "outdoor", "nuscenes": "outdoor", "sunrgbd": "indoor", "arkitscenes": "indoor",
             "hypersim": "indoor"}  # fmt: skip
# Objectron's lengths come from a phone's motion and are known up to a factor.
_NOT_METRIC = ("objectron",)
_NOT_UPRIGHT = ("hypersim", "objectron")
# What is read of an annotation. The rest, above all the 24 numbers of bbox3D_cam, is dropped while parsing.
_FIELDS = frozenset(
    ("id", "image_id", "category_name", "valid3D", "behind_camera", "bbox2D_tight", "bbox2D_trunc", "bbox2D_proj",
     "center_cam", "dimensions", "R_cam", "visibility", "truncation", "segmentation_pts", "lidar_pts",
     "depth_error")
)  # fmt: skip


def load(path: str | Path, split: str = "train") -> LoadedScenes:
    """All scenes of a file at once; see `read`."""
    return collect(read, path, split)


def read(path: str, split: str, ignored: Counter[str]) -> Iterator[Scene]:
    """Reads an Omni3D file; annotations that its rules ignore are counted, and named as hidden things.

    Args:
        path: the JSON. Its `file_path`s start from its own folder or, as in Omni3D's layout, from the
            one above.
        split: "train", "val" or "test", for the thresholds.
        ignored: counts what is left out, by reason.

    Raises:
        UserError: for a missing or malformed file, one of another split where "test" is asked for, missing images
            (before the first scene), or no usable object at all.
    """
    file = Path(path)
    limits = thresholds(split)
    info, images, annotations = _parse(file, ignored)
    stated = str(info.get("split", "")).strip().lower() if isinstance(info, dict) else ""
    if split == "test" and stated in ("train", "val"):
        raise UserError(f"{file} says that it is the split {stated!r}, but a test split is asked for; name the file of "
                        "the test split")
    images = _sound_images(images, info, ignored)
    for orphan in annotations.keys() - {image["id"] for image in images}:
        ignored["annotation: no usable image"] += len(annotations.pop(orphan))
    roots = [file.parent, file.parent.parent]
    missing = [image["file_path"] for image in images if _find(roots, image["file_path"]) is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(images)} images of {file} are missing, the first is "
            f"{missing[0]} below {roots[0]}; fetch them"
        )
    yield from some_scenes(_scenes(images, annotations, roots, limits, ignored), file, ignored)


def _parse(
    path: Path, ignored: Counter[str]
) -> tuple[Any, list[Any], dict[Any, list[Mapping[str, Any]]]]:
    """(info, images, annotations by image id)."""

    def slim(entry: dict[str, Any]) -> dict[str, Any]:
        return {key: entry[key] for key in _FIELDS & entry.keys()} if "image_id" in entry else entry

    try:
        with path.open(encoding="utf-8") as file:
            data = json.load(file, object_hook=slim)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name an Omni3D JSON file with --input") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name the Omni3D JSON file in it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise UserError(f"{path} is not JSON ({error}); it may be cut short, fetch it again") from error
    for key in ("images", "annotations"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise UserError(f"{path} has no list {key!r}; it is not an Omni3D file")
    annotations: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    seen: set[Any] = set()
    for annotation in data.pop("annotations"):
        if not isinstance(annotation, dict):
            ignored["annotation: not an object"] += 1
            continue
        number, image = annotation.get("id"), annotation.get("image_id")
        if isinstance(number, (dict, list)) or isinstance(image, (dict, list)):
            ignored["annotation: malformed"] += 1
        elif number is not None and number in seen:
            ignored["annotation: id used twice"] += 1
        else:
            seen.add(number)
            annotations[image].append(annotation)
    return data.get("info"), data["images"], annotations


def _sound_images(images: list[Any], info: Any, ignored: Counter[str]) -> list[dict[str, Any]]:
    """The images whose entries can be used, each with `dataset` (its sub-dataset) and `K` as an array."""
    result: list[dict[str, Any]] = []
    ids: set[Any] = set()
    paths: set[str] = set()
    for image in images:
        try:
            name, width, height = str(image["file_path"]), int(image["width"]), int(image["height"])
            intrinsics = np.array(image["K"], float)
            repeated = image["id"] in ids or name in paths
        except (KeyError, TypeError, ValueError, OverflowError):
            ignored["image: malformed"] += 1
            continue
        if repeated:
            ignored["image: listed twice"] += 1
            continue
        ids.add(image["id"])
        paths.add(name)
        fault = "image: flagged by its source" if image.get("src_flagged") else None
        fault = fault or camera_fault(intrinsics, width, height)
        if fault:
            ignored[fault] += 1
            continue
        result.append(
            {"id": image["id"], "file_path": name, "width": width, "height": height, "K": intrinsics,
             "rotated": bool(image.get("src_90_rotate")), "dataset": sub_dataset(image, info)}
        )  # fmt: skip
    return result


def sub_dataset(image: Mapping[str, Any], info: Any) -> str:
    """Which of `DATASETS` an image is from, or the lower-case name that the file gives it, or "".

    Omni3D's own files number the sub-datasets (`dataset_id`) and name them in `info` ("KITTI Train");
    files made by others may write the name itself, or have the infos of several files in a list.
    """
    number: Any = image.get("dataset_id")
    infos = [entry for entry in (info if isinstance(info, list) else [info]) if isinstance(entry, dict)]
    if len(infos) > 1:
        infos = [entry for entry in infos if str(number) in (str(entry.get("id")), str(entry.get("source")))]
    folders = str(image.get("file_path", "")).split("/")[:-1]
    written: str = number if isinstance(number, str) and not number.isdigit() else ""
    given = [written, *(entry.get(key) for entry in infos for key in ("name", "source", "id")), *folders]
    for text in given:
        plain = re.sub(r"[^a-z0-9]", "", str(text).lower())
        for name in DATASETS:
            if name in plain:
                return name
    return written.lower()


def _find(roots: list[Path], name: str) -> Path | None:
    return next((file for root in roots if (file := inside(root, name)).is_file()), None)


def _scenes(
    images: list[dict[str, Any]],
    annotations: dict[Any, list[Mapping[str, Any]]],
    roots: list[Path],
    limits: Thresholds,
    ignored: Counter[str],
) -> Iterator[Scene]:
    # Frames of videos are all called alike (Hypersim's frame.0000): only then their folders are part of the id.
    stems = Counter((image["dataset"], Path(image["file_path"]).stem) for image in images)
    for image in images:
        source, name = image["dataset"], image["file_path"]
        width, height = image["width"], image["height"]
        objects, hidden = _objects(annotations.pop(image["id"], []), source, width, height, limits, ignored)
        if not objects:
            ignored["image: no usable object"] += 1
            continue
        file = _find(roots, name)
        assert file is not None
        if image["rotated"] and picture_size(file) != (width, height):
            # Omni3D turned these pictures upright; annotations belong to the turned ones.
            ignored["image: not the copy that Omni3D rotated"] += 1
            continue
        stem = Path(name).stem
        unique = stem if stems[source, stem] == 1 else "--".join(Path(name).with_suffix("").parts)
        upright = source not in _NOT_UPRIGHT
        up = None if upright else vote_up(np.stack([o.box.rotation for o in objects]))
        yield Scene(
            SceneImage(f"{source or 'omni3d'}-{unique}", path=str(file)),
            Camera(width, height, image["K"], None if up is None else -up),
            objects,
            metric=source not in _NOT_METRIC,
            source=f"omni3d/{source}" if source else "omni3d",
            setting=_SETTINGS.get(source, ""),
            hidden=hidden,
            upright=upright,
        )


def _objects(
    annotations: list[Mapping[str, Any]],
    source: str,
    width: int,
    height: int,
    limits: Thresholds,
    ignored: Counter[str],
) -> tuple[tuple[Object3D, ...], tuple[str, ...]]:
    """(usable objects, categories of the ignored ones)."""
    objects: list[Object3D] = []
    hidden: list[str] = []
    for annotation in annotations:
        category = "*"
        try:
            category = common_name(annotation["category_name"])
            reason = "class without a name" if category in NAMELESS else ignore_reason(annotation, height, limits)
            parsed = None if reason else _object(annotation, category, source, width, height)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
            reason, parsed = "malformed", None
        if isinstance(parsed, str):
            reason, parsed = parsed, None
        if parsed is None:
            ignored[f"object: {reason}"] += 1
            hidden.append(category)
        else:
            objects.append(parsed)
    return tuple(objects), tuple(sorted(set(hidden)))


def ignore_reason(annotation: Mapping[str, Any], height: int, limits: Thresholds) -> str | None:
    """Why Omni3D's rules ignore an annotation, or None."""
    if annotation["behind_camera"]:
        return "behind the camera"
    if not annotation["valid3D"]:
        return "no valid 3D box"
    if min(annotation["dimensions"]) <= 0:
        return "size not positive"
    if annotation.get("lidar_pts", -1) == 0:
        return "no lidar points"
    if annotation.get("segmentation_pts", -1) == 0:
        return "no segmentation points"
    if annotation.get("depth_error", -1) > limits.depth_error:
        return "depth error"
    box = _box2d(annotation)
    tall = box[3] - box[1]
    if tall < limits.low * height:
        return "too small in the image"
    if tall >= limits.high * height:
        return "too tall for the image"
    if annotation.get("truncation", -1) >= limits.truncation:
        return "truncated"
    if 0 <= annotation.get("visibility", -1) <= limits.visibility:
        return "hidden"
    return None


def _box2d(annotation: Mapping[str, Any]) -> list[float]:
    """The tightest 2D box that is annotated: of the pixels, else of the projected 3D box."""
    for key in ("bbox2D_tight", "bbox2D_trunc", "bbox2D_proj"):
        box = annotation.get(key)
        if box is not None and min(box[2] - box[0], box[3] - box[1]) > 0:
            return [float(v) for v in box]
    raise ValueError("no 2D box")


def _object(
    annotation: Mapping[str, Any], category: str, source: str, width: int, height: int
) -> Object3D | str:
    """The object, or why its numbers cannot be used."""
    w, h, length = annotation["dimensions"]
    box = Box3D(
        np.array(annotation["center_cam"], float).reshape(3),
        np.array([length, h, w], float),
        np.array(annotation["R_cam"], float).reshape(3, 3),
    )
    fault = valid_box(box)
    if fault:
        return f"box: {fault}"
    if box.center[2] <= 0:
        return "behind the camera"
    bbox = np.clip(np.array(_box2d(annotation), float), 0, [width, height, width, height])
    if not np.isfinite(bbox).all():
        return "2D box: nan"
    if bbox[2] - bbox[0] < 1 or bbox[3] - bbox[1] < 1:
        return "2D box outside the image"
    visibility, truncation = annotation.get("visibility", -1), annotation.get("truncation", -1)
    return Object3D(
        category=category,
        phrase=category,
        box=box,
        bbox2d=bbox,
        has_front=has_front(source, category),
        visibility=float(visibility) if visibility >= 0 else 1.0,
        truncation=float(truncation) if truncation >= 0 else 0.0,
    )
