"""Scenes on disk, a JSON line each: what readers hand to workers, and a format for annotations of one's own.

A line is `scene.serialize.scene_to_json`'s object with one more key, `file`: the picture's path. Annotation files
of millions of boxes do not fit into every worker's memory as objects; lines that are read when asked for do.
"""

from __future__ import annotations

import array
import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import valid_box
from spatialllm_jax.scene.serialize import scene_from_dict, scene_to_json
from spatialllm_jax.scene.types import Scene
from spatialllm_jax.sources.loaded import camera_fault, inside

LICENCE = "as its author says (scene file)"


@dataclasses.dataclass(frozen=True)
class Written:
    """What `write_scenes` wrote.

    Attributes:
        count: number of scenes.
        digest: SHA-256 of the scenes and the names of their pictures; does not depend on where they lie.
        categories: of all objects, sorted.
        sources: scenes by `Scene.source`.
    """

    count: int
    digest: str
    categories: tuple[str, ...]
    sources: dict[str, int]


def write_scenes(path: Path, scenes: Iterable[Scene]) -> Written:
    """Writes scenes in order, one at a time; pictures stay where they are (`SceneImage.path`)."""
    digest = hashlib.sha256()
    categories: set[str] = set()
    sources: Counter[str] = Counter()
    with path.open("w") as file:
        for scene in scenes:
            text = scene_to_json(scene)
            place = scene.image.path or ""
            file.write(f'{{"file":{json.dumps(place)},{text[1:]}\n')
            digest.update(f"{Path(place).name}\n{text}\n".encode())
            categories.update(o.category for o in scene.objects)
            sources[scene.source] += 1
    return Written(sum(sources.values()), digest.hexdigest(), tuple(sorted(categories)), dict(sorted(sources.items())))


def read_scene(path: str, index: int) -> Scene:
    """Scene `index` of a file that `write_scenes` wrote."""
    with Path(path).open("rb") as file:
        file.seek(_starts(path)[index])
        data = json.loads(file.readline())
    return scene_from_dict(data, path=data["file"])


@functools.lru_cache(maxsize=16)
def _starts(path: str) -> array.array[int]:
    """Where each line starts, in bytes."""
    starts, position = array.array("q"), 0
    with Path(path).open("rb") as file:
        for line in file:
            starts.append(position)
            position += len(line)
    return starts


def read(path: str, split: str, ignored: Counter[str]) -> Iterator[Scene]:
    """Scenes of a file somebody wrote; `file`s start from its folder and must stay inside.

    Args:
        path: the file, JSON lines.
        split: unused, the file is one split.
        ignored: counts objects and images that cannot be used, by reason.

    Raises:
        UserError: for a missing file, a line that is no scene, a missing picture, or no usable object at all.
    """
    source = Path(path)
    if not source.is_file():
        raise UserError(f"{path} does not exist or is no file; name a scene file (JSON lines) with --input")
    found = 0
    with source.open() as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                scene = _scene(source, number, line)
                fault = camera_fault(scene.camera.intrinsics, scene.camera.width, scene.camera.height)
                good = tuple(o for o in scene.objects if valid_box(o.box) is None and o.box.center[2] > 0)
                ignored["object: unusable box"] += len(scene.objects) - len(good)
                if fault or not good:
                    ignored[fault or "image: no usable object"] += 1
                    continue
                found += 1
                hidden = sorted({*scene.hidden, *(o.category for o in scene.objects if o not in good)})
                yield dataclasses.replace(scene, objects=good, hidden=tuple(hidden))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not a text file ({error}); name a scene file (JSON lines)") from error
    ignored += Counter()  # drops zeros
    if not found:
        raise UserError(f"{path} has no scene with a usable object; use another file")


def _scene(source: Path, number: int, line: str) -> Scene:
    try:
        data = json.loads(line)
        picture = inside(source.parent, data["file"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"line {number} of {source} is no scene ({error!r}); see docs/conventions.md") from error
    if not picture.is_file():
        raise UserError(f"image {picture} of line {number} in {source} is missing; fetch it")
    try:
        return scene_from_dict(data, path=str(picture))
    except UserError as error:
        raise UserError(f"line {number} of {source} is no scene: {error}") from error
