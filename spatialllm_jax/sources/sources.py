"""One door to all scene sources: annotation files and folders, scene files, plain pictures, and the renderer."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spatialllm_jax.engines import Engine
from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.types import Scene
from spatialllm_jax.sources import scene_file

# Kind -> module with `read` (`loaded.Reader`) and `LICENCE`; imported when first asked for.
_READERS = {
    "apollo": "spatialllm_jax.sources.apollo",
    "bop": "spatialllm_jax.sources.bop",
    "imagenet3d": "spatialllm_jax.sources.imagenet3d",
    "kitti": "spatialllm_jax.sources.kitti",
    "omni3d": "spatialllm_jax.sources.omni3d",
    "scenes": "spatialllm_jax.sources.scene_file",
}
PSEUDO_LABELS = "pseudo_labels"
# What `--input` may name.
INPUT_KINDS = (*_READERS, PSEUDO_LABELS)
KINDS = ("rendered", *INPUT_KINDS)
RENDERED_LICENCE = "made by this program; no restrictions from its sources"


@dataclasses.dataclass(frozen=True)
class SceneSource:
    """Scenes by number, cheap to hand to other processes.

    Attributes:
        kind: one of KINDS.
        name: of the annotation file or folder, without its place; for cards.
        count: number of scenes; None for the endless stream of rendered ones.
        licence: of the annotations and pictures.
        categories, colours: everything its objects can be, for negatives and options.
        contents: scenes by `Scene.source`.
        ignored: annotations left out, by reason.
        digest: of the scenes; two sources with equal digests hold the same scenes.
        file: scene file that holds them; "" for rendered ones.
        render: settings of the renderer.
        seed: stream of rendered scenes.
    """

    kind: str
    name: str
    count: int | None
    licence: str
    categories: tuple[str, ...]
    colours: tuple[str, ...] = ()
    contents: Mapping[str, int] = dataclasses.field(default_factory=dict)
    ignored: Mapping[str, int] = dataclasses.field(default_factory=dict)
    digest: str = ""
    file: str = ""
    render: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def scenes(self, indices: Sequence[int]) -> Iterator[Scene]:
        """The scenes of these numbers, in this order."""
        if self.kind != "rendered":
            yield from (scene_file.read_scene(self.file, int(index)) for index in indices)
            return
        from spatialllm_jax.sources.rendered.source import render

        config = render_config(self.render)
        yield from (render(config, self.seed, int(index)).scene for index in indices)

    def settings(self) -> dict[str, Any]:
        """What the scenes depend on, JSON-ready and free of places on this machine."""
        return {"kind": self.kind, "name": self.name, "count": self.count, "digest": self.digest,
                "render": dict(self.render), "seed": self.seed}


def parse_input(text: str, kind: str, splits: Sequence[str]) -> tuple[str | None, str, str]:
    """(split or None, kind, path) of an `--input` value: `[SPLIT=][KIND:]PATH`.

    Args:
        kind: where none is written.
        splits: the names that count as a split.
    """
    match = re.fullmatch(
        rf"(?:({'|'.join(map(re.escape, splits))})=)?(?:({'|'.join(INPUT_KINDS)}):)?(.+)", text)
    if match is None:
        raise UserError(f"--input {text!r} names no path; write [SPLIT=][KIND:]PATH, KIND being one of "
                        f"{', '.join(INPUT_KINDS)}")
    return match[1], match[2] or kind, match[3]


def open_annotated(kind: str, path: str, split: str, spool: Path, progress: bool = True) -> SceneSource:
    """Reads annotations once and spools their scenes to a file.

    Args:
        kind: one of KINDS but "rendered".
        path: of the annotation file or folder.
        split: "train" or "test": thresholds of the source, or its own lists.
        spool: scene file to write.
        progress: show how many scenes have been read.

    Raises:
        UserError: for an unknown kind, or files that cannot be used.
    """
    if kind not in _READERS:
        raise UserError(f"source {kind!r} of {path} is unknown; choose from {', '.join(_READERS)}")
    module = importlib.import_module(_READERS[kind])
    ignored: Counter[str] = Counter()
    name = Path(path).name
    scenes = tqdm(module.read(path, split, ignored), desc=f"reading {name}", unit="scene", disable=not progress)
    written = scene_file.write_scenes(spool, scenes)
    return SceneSource(kind, name, written.count, module.LICENCE, written.categories, (), written.sources,
                       dict(ignored), written.digest, str(spool))


def open_pictures(path: str, split: str, spool: Path, settings: Mapping[str, Any], labels: Path, engine: Engine,
                  opener: Callable[[Any], Any], progress: bool = True) -> SceneSource:
    """Labels a folder of plain pictures (`sources.pseudo_labels`), or goes on labelling it.

    Args:
        settings: of the labelling, fields of `PseudoLabelConfig`.
        labels: folder for what is done; kept, so that nothing is done twice.
        engine: what runs the models.
        opener: config -> estimators, in each worker (`pseudo_labels.folder.Opener`).

    Raises:
        UserError: when the pictures, the models or the settings cannot be used, or no picture gives a scene.
    """
    from spatialllm_jax.sources.pseudo_labels import folder
    from spatialllm_jax.sources.pseudo_labels.config import pseudo_label_config

    scenes, ignored = folder.label_folder(Path(path), labels, pseudo_label_config(settings), engine, opener=opener,
                                           progress=progress)
    if not scenes.stat().st_size:
        raise UserError(f"no picture in {path} gave a scene ({folder.commonest(ignored)}); see {labels}/log.tsv")
    opened = open_annotated("scenes", str(scenes), split, spool, progress)
    total = Counter(ignored) + Counter(opened.ignored)
    return dataclasses.replace(opened, kind=PSEUDO_LABELS, name=Path(path).name, licence=folder.LICENCE,
                               ignored=dict(total))


def open_rendered(render: Mapping[str, Any], seed: int) -> SceneSource:
    """The endless stream `seed` of rendered scenes; `render` holds fields of `RenderConfig`."""
    from spatialllm_jax.sources.rendered import catalogue, palette

    config = render_config(render)
    names = {n for s in config.settings for n in catalogue.names(s, config.categories)}
    return SceneSource("rendered", "rendered", None, RENDERED_LICENCE, tuple(sorted(names)), tuple(palette.ALL),
                       render=dict(render), seed=seed)


def render_config(settings: Mapping[str, Any]) -> Any:
    """A `RenderConfig` from plain settings; raises UserError on an unknown key."""
    from spatialllm_jax.sources.rendered.config import RenderConfig

    known = {f.name for f in dataclasses.fields(RenderConfig)}
    for key in settings:
        if key not in known:
            raise UserError(f"render setting {key!r} is unknown; choose from {', '.join(sorted(known))}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return RenderConfig(**values)
