"""Rendered pictures of single objects in ImageNet3D's format: train on some meshes, test on others."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spatialllm_jax.engines import Local
from spatialllm_jax.errors import UserError
from spatialllm_jax.sources import imagenet3d_writer
from spatialllm_jax.sources.rendered import catalogue, meshes
from spatialllm_jax.sources.rendered.config import RenderConfig
from spatialllm_jax.sources.rendered.source import render
from spatialllm_jax.whole_files import write_whole

SETTINGS = "rendered.json"
_CHUNK = 32


@dataclasses.dataclass(frozen=True)
class Split:
    """Pictures of one list.

    Attributes:
        name: "train" or "val", as ImageNet3D names its lists.
        seed: of the scenes.
    """

    name: str
    config: RenderConfig
    seed: int
    count: int


def splits(base: RenderConfig, counts: Mapping[str, int], seed: int, categories: tuple[str, ...] = ()) -> list[Split]:
    """A train and a val split that share neither a mesh nor a seed.

    Train shows meshes of the one part and, under assets="both", procedural objects; val shows meshes of the other
    part alone. Without meshes (assets="procedural") only the seeds set them apart.

    Args:
        base: how pictures look; the number of objects is set to one, and its categories to those with a front.
        categories: of both splits; empty takes all that have a front in the assets.

    Raises:
        UserError: a category has no front, or the mesh folder has none of them.
    """
    fronted = tuple(name for name, category in catalogue.CATEGORIES.items() if category.has_front)
    if unknown := [name for name in categories if name not in fronted]:
        raise UserError(f"category {unknown[0]!r} has no front among the rendered objects; choose from "
                        f"{', '.join(fronted)}")
    result = []
    for name, count in counts.items():
        if name not in ("train", "val"):
            raise UserError(f"{name!r} is no list of ImageNet3D; write train=N,val=N")
        config = base
        chosen = categories or fronted
        if base.assets != "procedural":
            assert base.mesh_folder is not None
            part = "train" if name == "train" else "test"
            known = meshes.categories(base.mesh_folder, part)
            chosen = tuple(item for item in chosen if item in known and item not in meshes.WITHOUT_FRONT)
            config = dataclasses.replace(base, mesh_split=part,
                                         assets=base.assets if name == "train" else "sweethome3d")
            if not chosen:
                raise UserError(f"the meshes of {base.mesh_folder} leave no category to render for {name}")
        # Train scenes of the project have even seeds, test scenes odd ones.
        result.append(Split(name, dataclasses.replace(config, objects=(1, 1), categories=chosen),
                            2 * seed + (name != "train"), count))
    return result


def write(root: str | Path, parts: list[Split], *, workers: int = 1, progress: bool = True) -> dict[str, int]:
    """Renders what is not there yet; lists are written last. Returns the number of pictures per list.

    Every annotation carries a further field "mesh": who made it, or "" for procedural objects.

    Raises:
        UserError: the folder holds pictures of other settings.
    """
    root = Path(root)
    settings = json.loads(json.dumps([dataclasses.asdict(part) for part in parts]))
    _settle(root, settings)
    folder = parts[0].config.mesh_folder
    if folder is not None and parts[0].config.assets != "procedural":
        write_whole(root / "CREDITS.md", _credits(folder))
    for part in parts:
        samples: list[tuple[str, str]] = []
        # The engine is closed when the pictures end early.
        with contextlib.closing(Local(workers).map(functools.partial(_chunks, root, part),
                                                   range(0, part.count, _CHUNK))) as found, \
                tqdm(total=part.count, desc=part.name, unit="picture", disable=not progress) as bar:
            for chunk in found:
                samples += chunk
                bar.update(len(chunk))
        imagenet3d_writer.write_lists(root, part.name, samples)
    return {part.name: part.count for part in parts}


def _chunks(root: Path, part: Split) -> Callable[[int], list[tuple[str, str]]]:
    """What a worker does: from `start` on, (category folder, name) of pictures, those that are there included."""
    def chunk(start: int) -> list[tuple[str, str]]:
        samples = []
        for index in range(start, min(start + _CHUNK, part.count)):
            there = sorted((root / "images").glob(f"*/rendered-{part.seed}-{index:06d}.JPEG"))
            if there:
                samples.append((there[0].parent.name, there[0].stem))
                continue
            made = render(part.config, part.seed, index)
            category = imagenet3d_writer.write_scene(root, made.scene, [{"mesh": credit} for credit in made.credits])
            samples.append((category, made.scene.image.id))
        return samples

    return chunk


def _settle(root: Path, settings: Any) -> None:
    file = root / SETTINGS
    if file.exists() and json.loads(file.read_text()) != settings:
        raise UserError(f"{root} holds pictures of other settings ({SETTINGS}); choose another folder or delete it")
    if not file.exists() and root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} holds something else; choose another folder")
    write_whole(file, json.dumps(settings, indent=1))


def _credits(folder: str) -> str:
    return ("# Credits\n\nThe pictures show models of Sweet Home 3D's furniture libraries:\n\n"
            f"{meshes.credit_list(folder)}\n")
