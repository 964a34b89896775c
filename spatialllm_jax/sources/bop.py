"""Datasets in the BOP format (thodan/bop_toolkit, docs/bop_datasets_format.md) to scenes.

Layout: `<dataset>/<split>[_<type>]/<scene>/{scene_camera.json, scene_gt.json, scene_gt_info.json, rgb|gray}` and
`<dataset>/models[_<type>]/models_info.json`; variants with a camera's name in the files are not read. Lengths
are millimetres, matrices row-wise; `cam_R_m2c`, `cam_t_m2c` take a model into the camera frame (+x right,
+y down, +z forward). A model's box comes from min and size in models_info.json.

The object axes here are the model's x, -z, y: BOP says that z is up of an object that stands naturally, but an
object in a heap does not stand, and x is no front; so scenes are not `upright` and nothing has a front.
`cam_R_w2c` gives gravity where the world's z is up. The format does not promise that: YCB-Video's world is the
first camera (not used, except in rendered splits), and a world whose "up" points down or away from the viewer
is not believed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import projected_bbox, truncation_of, valid_box
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage
from spatialllm_jax.sources.fronts import common_name
from spatialllm_jax.sources.loaded import (
    LoadedScenes,
    Thresholds,
    camera_fault,
    collect,
    picture_size,
    some_scenes,
    thresholds,
)

LICENCE = "each BOP dataset's own licence (see its page on bop.felk.cvut.cz)"

_LINEMOD = ("ape", "bench vise", "bowl", "camera", "watering can", "cat", "cup", "drill", "duck", "egg box",
            "glue bottle", "hole puncher", "iron", "lamp", "phone")  # fmt: skip
_YCB = ("master chef can", "cracker box", "sugar box", "tomato soup can", "mustard bottle", "tuna fish can",
        "pudding box", "gelatin box", "potted meat can", "banana", "pitcher base", "bleach cleanser", "bowl", "mug",
        "power drill", "wood block", "scissors", "large marker", "large clamp", "extra large clamp",
        "foam brick")  # fmt: skip
# Dataset -> names of objects 1, 2, ...; those of the public releases, in words.
NAMES = {"lm": _LINEMOD, "lmo": _LINEMOD, "ycbv": _YCB}
# What an object is called whose name is unknown: enough for questions that mark it.
UNNAMED = "object"
_Model = tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]
_AXES = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # columns: front, down, left of a model


def load(folder: str | Path, split: str = "train") -> LoadedScenes:
    """All scenes of a folder at once; see `read`."""
    return collect(read, folder, split)


def read(path: str, split: str, ignored: Counter[str]) -> Iterator[Scene]:
    """Reads all scenes of a dataset's split, whatever its types (train_pbr, train_real, ...).

    Args:
        path: the dataset's folder, such as lm; `names.json` in it, {"1": "ape"}, names the objects.
        split: "train", "val" or "test".
        ignored: counts what is left out, by reason.

    Raises:
        UserError: for missing or malformed files or images, or no usable object at all.
    """
    root = Path(path).resolve()
    limits = thresholds(split)
    models = _models(root)
    names = _names(root)
    parts = sorted(p for p in root.iterdir() if p.is_dir() and (p.name == split or p.name.startswith(f"{split}_")))
    if not parts:
        raise UserError(f"{root} has no folder {split} or {split}_*; choose another split or fetch that one")
    yield from some_scenes(
        (scene for part in parts for scene in _scenes(root.name, part, models, names, limits, ignored)), root, ignored
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; fetch it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no JSON object; fetch it again")
    return data


def _models(root: Path) -> dict[int, _Model]:
    """Object id -> (middle, size) of its box in the model's frame, metres."""
    files = sorted(root.glob("models*/models_info.json"), key=lambda file: (len(file.parent.name), file))
    if not files:
        raise UserError(f"{root} has no models/models_info.json; name a dataset in BOP format and fetch its models")
    result: dict[int, _Model] = {}
    for key, info in _json(files[0]).items():
        try:
            low, size = (np.array([float(info[f"{what}_{axis}"]) for axis in "xyz"]) / 1e3 for what in ("min", "size"))
            result[int(key)] = low + size / 2, size
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"object {key} in {files[0]} has no box ({error!r}); fetch the file again") from error
    return result


def _names(root: Path) -> dict[int, str]:
    file = root / "names.json"
    if not file.exists():
        return dict(enumerate(NAMES.get(root.name, ()), 1))
    try:
        return {int(key): common_name(name) for key, name in _json(file).items()}
    except (ValueError, AttributeError) as error:
        raise UserError(f'{file} does not map numbers to names ({error}); write {{"1": "ape"}}') from error


def _scenes(
    dataset: str,
    part: Path,
    models: Mapping[int, _Model],
    names: Mapping[int, str],
    limits: Thresholds,
    ignored: Counter[str],
) -> Iterator[Scene]:
    for folder in sorted(p for p in part.iterdir() if p.is_dir()):
        if not (folder / "scene_gt.json").is_file():
            ignored["scene: no ground truth"] += 1
            continue
        cameras, truths = _json(folder / "scene_camera.json"), _json(folder / "scene_gt.json")
        known = folder / "scene_gt_info.json"
        infos = _json(known) if known.is_file() else {}
        for key in truths:
            image = _image(folder, key)
            if image is None:
                ignored["image: TIFF, which is not read"] += 1
                continue
            width, height = picture_size(image)
            try:
                entry = cameras[key]
                intrinsics = np.array(entry["cam_K"], float).reshape(3, 3)
                gravity = _gravity(entry, dataset, part.name)
            except (KeyError, TypeError, ValueError):
                ignored["image: malformed camera"] += 1
                continue
            fault = camera_fault(intrinsics, width, height)
            if fault:
                ignored[fault] += 1
                continue
            camera = Camera(width, height, intrinsics, gravity)
            objects, hidden = _objects(truths[key], infos.get(key), camera, models, names, limits, ignored)
            if not objects:
                ignored["image: no usable object"] += 1
                continue
            yield Scene(
                SceneImage(f"{dataset}-{part.name}-{folder.name}-{image.stem}", path=str(image)),
                camera,
                objects,
                metric=True,
                source=f"bop/{dataset}",
                setting="indoor",
                hidden=hidden,
                upright=False,
            )


def _image(folder: Path, key: str) -> Path | None:
    """The picture of an entry, or None when there is only a TIFF. Raises UserError when it is missing."""
    stem = f"{int(key):06d}" if key.isdigit() else "none"
    tiff = False
    for kind in ("rgb", "gray"):
        for ending in ("png", "jpg"):
            file = folder / kind / f"{stem}.{ending}"
            if file.is_file():
                return file
        tiff = tiff or (folder / kind / f"{stem}.tif").is_file()
    if not tiff:
        raise UserError(f"image {folder / 'rgb' / stem}.png of entry {key!r} of scene_gt.json is missing; fetch it")
    return None


def _gravity(entry: Mapping[str, Any], dataset: str, part: str) -> Float[np.ndarray, "3"] | None:
    """Down in the camera frame, where the world's z can be believed to be up."""
    if "cam_R_w2c" not in entry or (dataset == "ycbv" and "pbr" not in part and "synt" not in part):
        return None
    up = np.array(entry["cam_R_w2c"], float).reshape(3, 3)[:, 2]
    # A camera looks level or down on a table: up is up in the picture and not away from the viewer.
    if not np.isfinite(up).all() or abs(up @ up - 1) > 0.02 or -up[1] < 0.2 or up[2] > 0.5:
        return None
    return -up


def _objects(
    truths: Any,
    infos: Any,
    camera: Camera,
    models: Mapping[int, _Model],
    names: Mapping[int, str],
    limits: Thresholds,
    ignored: Counter[str],
) -> tuple[tuple[Object3D, ...], tuple[str, ...]]:
    """(usable objects, categories of the ignored ones)."""
    objects: list[Object3D] = []
    hidden: set[str] = set()
    for index, truth in enumerate(truths if isinstance(truths, list) else [truths]):
        name = "*"
        try:
            number = int(truth["obj_id"])
            name = names.get(number, UNNAMED)
            parsed = _object(truth, infos[index] if infos else None, name, camera, models.get(number), limits)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError):
            parsed = "malformed"
        if isinstance(parsed, str):
            ignored[f"object: {parsed}"] += 1
            hidden.add("*" if name == UNNAMED else name)
        else:
            objects.append(parsed)
    return tuple(objects), tuple(sorted(hidden))


def _object(
    truth: Mapping[str, Any],
    info: Mapping[str, Any] | None,
    name: str,
    camera: Camera,
    model: _Model | None,
    limits: Thresholds,
) -> Object3D | str:
    """The object, or why it is left out."""
    if model is None:
        return "no model"
    pose = np.array(truth["cam_R_m2c"], float).reshape(3, 3)
    middle, size = model
    center = pose @ middle + np.array(truth["cam_t_m2c"], float).reshape(3) / 1e3
    box = Box3D(center, size[[0, 2, 1]], pose @ _AXES)
    fault = valid_box(box)
    if fault:
        return f"box: {fault}"
    if center[2] <= 0:
        return "behind the camera"
    if info is None:
        visibility, truncation, found = 1.0, truncation_of(box, camera), projected_bbox(box, camera)
    else:
        visibility = float(info["visib_fract"])
        whole, found = _corners(info["bbox_obj"]), _corners(info["bbox_visib"])
        truncation = 1.0 - _area(_clipped(whole, camera)) / max(_area(whole), 1e-9)
    if visibility <= limits.visibility:
        return "hidden"
    if truncation >= limits.truncation:
        return "truncated"
    bbox = None if found is None else _clipped(found, camera)
    if bbox is None or min(bbox[2] - bbox[0], bbox[3] - bbox[1]) < 1 or not np.isfinite(bbox).all():
        return "2D box outside the image"
    if bbox[3] - bbox[1] < limits.low * camera.height:
        return "too small in the image"
    return Object3D(name, name, box, bbox, False, min(visibility, 1.0), min(max(truncation, 0.0), 1.0))


def _corners(box: Any) -> Float[np.ndarray, "4"]:
    x, y, width, height = (float(v) for v in box)
    return np.array([x, y, x + width, y + height])


def _clipped(box: Float[np.ndarray, "4"], camera: Camera) -> Float[np.ndarray, "4"]:
    return np.clip(box, 0, [camera.width, camera.height, camera.width, camera.height])


def _area(box: Float[np.ndarray, "4"]) -> float:
    return float(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))
