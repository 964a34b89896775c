"""Omni3D's JSON (facebookresearch/omni3d, DATA.md) to scenes.

COCO-like `{info, images, categories, annotations}`; boxes in the camera frame with `center_cam`,
`dimensions` = [w, h, l] and `R_cam`, whose first column is the front. -1 stands for "not available".
Gravity is not annotated: the boxes' own up axes give it (`scene.geometry.up_vector`).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import valid_box
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage
from spatialllm_jax.sources.fronts import NAMELESS, common_name, has_front
from spatialllm_jax.sources.loaded import LoadedScenes, Thresholds, camera_fault, inside, thresholds

_SETTINGS = {"kitti": "outdoor", "nuscenes": "outdoor", "sunrgbd": "indoor", "arkitscenes": "indoor",
             "hypersim": "indoor"}  # fmt: skip
_METRIC = {"objectron": False}


def load(path: str | Path, split: str = "train", images: str | Path | None = None) -> LoadedScenes:
    """Reads an Omni3D file; annotations that its rules ignore are counted, and named as hidden things.

    Args:
        path: the JSON.
        split: "train" or "test", for the thresholds.
        images: folder that `file_path`s start from; by default the JSON's own folder or, as in Omni3D's
            layout, the one above.

    Raises:
        UserError: for a missing or malformed file, a missing image, or no usable object at all.
    """
    path = Path(path)
    data = _read(path)
    limits = thresholds(split)
    ignored: Counter[str] = Counter()
    annotations: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in data["annotations"]:
        annotations[annotation.get("image_id") if isinstance(annotation, dict) else None].append(annotation)
    for orphan in set(annotations) - {image.get("id") for image in data["images"]}:
        ignored["annotation of no image"] += len(annotations[orphan])

    roots = [Path(images)] if images is not None else [path.parent, path.parent.parent]
    scenes: list[Scene] = []
    missing: list[str] = []
    seen: set[str] = set()
    for image in data["images"]:
        try:
            key, name = image["id"], str(image["file_path"])
            width, height = int(image["width"]), int(image["height"])
            intrinsics = np.array(image["K"], float)
        except (KeyError, TypeError, ValueError):
            ignored["image: malformed"] += 1
            continue
        fault = "image: flagged by its source" if image.get("src_flagged") else None
        fault = fault or camera_fault(intrinsics, width, height)
        if fault:
            ignored[fault] += 1
            continue
        files = [inside(root, name) for root in roots]
        file = next((f for f in files if f.is_file()), None)
        if file is None:
            missing.append(name)
            continue
        source = str(image.get("dataset_id", data.get("info", {}).get("name", ""))).lower()
        objects, hidden = _objects(annotations[key], source, width, height, limits, ignored)
        if not objects:
            ignored["image: no usable object"] += 1
            continue
        image_id = f"{source or 'omni3d'}-{Path(name).stem}"
        image_id = image_id if image_id not in seen else f"{image_id}-{key}"
        seen.add(image_id)
        scenes.append(
            Scene(
                SceneImage(image_id, path=str(file)),
                Camera(width, height, intrinsics),
                objects,
                _METRIC.get(source, True),
                f"omni3d/{source}",
                _SETTINGS.get(source, ""),
                hidden,
            )
        )
    if missing:
        raise UserError(
            f"{len(missing)} of {len(data['images'])} images of {path} are missing, the first is "
            f"{missing[0]} below {roots[0]}; fetch them"
        )
    if not scenes:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in ignored.most_common(3))
        raise UserError(f"{path} has no image with a usable object ({reasons}); use another file")
    return LoadedScenes(tuple(scenes), dict(ignored))


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name an Omni3D JSON file with --input") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name the Omni3D JSON file in it") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); it may be cut short, fetch it again") from error
    for key in ("images", "annotations"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise UserError(f"{path} has no list {key!r}; it is not an Omni3D file")
    if not all(isinstance(image, dict) for image in data["images"]):
        raise UserError(f"the list 'images' of {path} holds something else than objects; it is not an Omni3D file")
    return data


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
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
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
