"""Scenes as files in ImageNet3D's format, which `sources.imagenet3d` (and ImageNet3D's own tools) read.

    root/images/<category>/<name>.JPEG
    root/annotations/<category>/<name>.npz      "annotations": a pickled list of dicts, one per object
    root/lists/<category>_imagenet_{train,val}.txt

A picture lies in the folder of its first object's category. Angles are ImageNet3D's, in [0, 2π); `distance` is in the
scene's own unit (metres, where it is metric), whereas ImageNet3D's counts in the unit of each CAD model.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import project, viewpoint
from spatialllm_jax.scene.types import Camera, Object3D, Scene
from spatialllm_jax.whole_files import write_whole

GOOD, PARTIAL = 0.9, 0.45     # least visible share of "good" and "partially" in a written annotation


def annotation(thing: Object3D, camera: Camera) -> dict[str, Any]:
    """One object's entry."""
    radians = np.radians(viewpoint(thing.box)) % (2 * np.pi)
    pixel = project(thing.box.center, camera.intrinsics)
    status = "good" if thing.visibility >= GOOD else "partially" if thing.visibility >= PARTIAL else "barely"
    return {"class": thing.category, "azimuth": float(radians[0]), "elevation": float(radians[1]),
            "theta": float(radians[2]), "distance": float(np.linalg.norm(thing.box.center)),
            "viewport": float(camera.intrinsics[0, 0]), "px": float(pixel[0]), "py": float(pixel[1]),
            "bbox": [float(v) for v in thing.bbox2d], "width": camera.width, "height": camera.height, "cad_index": 0,
            "object_status": f"status_{status}", "dense": "dense_no"}


def write_scene(root: Path, scene: Scene, extra: Iterable[Mapping[str, Any]] = ()) -> str:
    """Writes one picture with its annotation; returns the folder of its category.

    Args:
        extra: further fields, one mapping per object; readers ignore what they do not know.

    Raises:
        UserError: the scene has no object. Nothing is written then.
    """
    if not scene.objects:
        raise UserError(f"scene {scene.image.id} has no object, so it has no category to be written under")
    more = list(extra) or [{}] * len(scene.objects)
    entries = [{**annotation(thing, scene.camera), **fields}
               for thing, fields in zip(scene.objects, more, strict=True)]
    category = folder_of(scene.objects[0].category)
    buffer = io.BytesIO()
    np.savez(buffer, annotations=np.array(entries, object))
    # The picture last: where it is, the annotation is.
    for part, suffix, content in (("annotations", "npz", buffer.getvalue()), ("images", "JPEG", scene.image.read())):
        write_whole(root / part / category / f"{scene.image.id}.{suffix}", content)
    return category


def write_lists(root: Path, split: str, samples: Iterable[tuple[str, str]]) -> None:
    """Writes the lists of a split ("train" or "val"): (category folder, name) pairs, a file per category."""
    names: dict[str, list[str]] = {}
    for category, name in samples:
        names.setdefault(category, []).append(name)
    for category, found in names.items():
        write_whole(root / "lists" / f"{category}_imagenet_{split}.txt", "\n".join(found) + "\n")


def folder_of(category: str) -> str:
    """The folder of a category: its name with underscores, as ImageNet3D spells its own."""
    return category.replace(" ", "_")
