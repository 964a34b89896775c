"""Scenes to JSON and back, without their pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage, Uncertainty

# True unless a source says otherwise; written only where False.
_FLAGS = ("shared_scale", "upright")


def scene_to_json(scene: Scene) -> str:
    """Camera, boxes and attributes as compact JSON; numbers rounded to 1e-5 (metres, pixels)."""
    camera = scene.camera
    return json.dumps(
        {
            "image_id": scene.image.id,
            "camera": {
                "width": camera.width,
                "height": camera.height,
                "intrinsics": _numbers(camera.intrinsics),
                "gravity": None if camera.gravity is None else _numbers(camera.gravity),
                **({"gravity_error": round(float(camera.gravity_error), 5)} if camera.gravity_error else {}),
            },
            "metric": scene.metric,
            "source": scene.source,
            "setting": scene.setting,
            "hidden": list(scene.hidden),
            **{key: False for key in _FLAGS if not getattr(scene, key)},
            "objects": [
                {
                    "category": o.category,
                    "phrase": o.phrase,
                    "center": _numbers(o.box.center),
                    "size": _numbers(o.box.size),
                    "rotation": _numbers(o.box.rotation),
                    "bbox2d": _numbers(o.bbox2d),
                    "has_front": bool(o.has_front),
                    "visibility": round(float(o.visibility), 5),
                    "truncation": round(float(o.truncation), 5),
                    "attributes": dict(o.attributes),
                    **({} if o.uncertainty is None else {"uncertainty": _uncertainty_to_dict(o.uncertainty)}),
                }
                for o in scene.objects
            ],
        },
        separators=(",", ":"),
    )


def scene_from_json(text: str, encoded: bytes | None = None, path: str | None = None) -> Scene:
    """The scene that `scene_to_json` wrote; `encoded` or `path` gives it its picture back.

    Raises:
        UserError: when the text is not such JSON; the sentence names the missing key.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UserError(f"scene JSON is not one that this program wrote ({error!r}); regenerate it") from error
    return scene_from_dict(data, encoded, path)


def scene_from_dict(data: Mapping[str, Any], encoded: bytes | None = None, path: str | None = None) -> Scene:
    """The scene of parsed JSON; see `scene_from_json`."""
    try:
        camera = data["camera"]
        gravity = camera["gravity"]
        return Scene(
            image=SceneImage(data["image_id"], path=path, encoded=encoded),
            camera=Camera(
                camera["width"],
                camera["height"],
                np.array(camera["intrinsics"], float),
                None if gravity is None else np.array(gravity, float),
                float(_bounds(camera.get("gravity_error", 0.0))),
            ),
            objects=tuple(
                Object3D(
                    category=o["category"],
                    phrase=o["phrase"],
                    box=Box3D(
                        np.array(o["center"], float),
                        np.array(o["size"], float),
                        np.array(o["rotation"], float),
                    ),
                    bbox2d=np.array(o["bbox2d"], float),
                    has_front=o["has_front"],
                    visibility=o["visibility"],
                    truncation=o["truncation"],
                    attributes=o["attributes"],
                    uncertainty=_uncertainty_from_dict(o["uncertainty"]) if "uncertainty" in o else None,
                )
                for o in data["objects"]
            ),
            metric=data["metric"],
            source=data["source"],
            setting=data["setting"],
            hidden=tuple(data["hidden"]),
            **{key: bool(data.get(key, True)) for key in _FLAGS},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"scene JSON is not one that this program wrote ({error!r}); regenerate it") from error


def _uncertainty_to_dict(u: Uncertainty) -> dict[str, Any]:
    return {"center": _numbers(u.center), "size": _numbers(u.size), "turn": round(float(u.turn), 5),
            "confidence": round(float(u.confidence), 5)}


def _uncertainty_from_dict(data: Mapping[str, Any]) -> Uncertainty:
    return Uncertainty(_bounds(data["center"], 2, 3), _bounds(data["size"], 3), float(_bounds(data["turn"])),
                       float(_bounds(data["confidence"])))


def _bounds(value: Any, *shape: int) -> np.ndarray:
    """How far something may be off; a broken or negative number would pass for knowledge."""
    found = np.array(value, float).reshape(shape)
    if not (np.isfinite(found).all() and found.min() >= 0):
        raise ValueError("an uncertainty must be finite and not negative")
    return found


def _numbers(array: np.ndarray) -> list[Any]:
    return np.round(np.asarray(array, float), 5).tolist()
