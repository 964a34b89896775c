"""One door to all scene sources: how many scenes there are, and scenes `start` to `start + count`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.types import Scene

KINDS = ("rendered", "omni3d", "kitti")
LICENCES = {
    "rendered": "made by this program; no restrictions from its sources",
    "omni3d": "CC BY-NC 4.0 (Omni3D; ARKitScenes BY-NC-SA), and the licences of its sub-datasets",
    "kitti": "CC BY-NC-SA 3.0 (KITTI)",
}


@functools.lru_cache(maxsize=2)
def _annotated(kind: str, path: str, split: str) -> tuple[tuple[Scene, ...], Mapping[str, int]]:
    if kind == "omni3d":
        from spatialllm_jax.sources import omni3d

        result = omni3d.load(path, split=split)
    else:
        from spatialllm_jax.sources import kitti

        result = kitti.load(path, split=split)
    return result.scenes, result.ignored


def source_size(kind: str, path: str | None, split: str) -> tuple[int | None, Mapping[str, int]]:
    """(number of scenes or None for endless, ignored annotations by reason).

    Raises:
        UserError: for an unknown kind, a missing path, or files that cannot be used.
    """
    if kind not in KINDS:
        raise UserError(f"source {kind!r} is unknown; choose from {', '.join(KINDS)}")
    if kind == "rendered":
        return None, {}
    if not path:
        raise UserError(f"source {kind!r} needs --input: the annotation file or folder to read")
    scenes, ignored = _annotated(kind, path, split)
    return len(scenes), ignored


def scenes(
    kind: str, path: str | None, split: str, settings: Mapping[str, Any], seed: int, start: int, count: int
) -> Iterator[Scene]:
    """Scenes `start` to `start + count - 1`; a pure function of its arguments.

    Args:
        kind: "rendered", "omni3d" or "kitti".
        path: of the annotations; unused for "rendered".
        split: "train" or "test": the thresholds of the annotation sources.
        settings: fields of `RenderConfig`; unused otherwise.
        seed: stream of rendered scenes; unused otherwise.
    """
    if kind == "rendered":
        from spatialllm_jax.sources.rendered.source import iter_scenes

        yield from iter_scenes(render_config(settings), seed, start, count)
    else:
        assert path is not None
        yield from _annotated(kind, path, split)[0][start : start + count]


def render_config(settings: Mapping[str, Any]) -> Any:
    """A `RenderConfig` from plain settings; raises UserError on an unknown key."""
    import dataclasses

    from spatialllm_jax.sources.rendered.config import RenderConfig

    known = {f.name for f in dataclasses.fields(RenderConfig)}
    for key in settings:
        if key not in known:
            raise UserError(f"render setting {key!r} is unknown; choose from {', '.join(sorted(known))}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return RenderConfig(**values)


def vocabulary(
    kind: str, path: str | None, split: str, settings: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(categories, colours) that a source can show, for negatives and options."""
    if kind == "rendered":
        from spatialllm_jax.sources.rendered import catalogue, palette

        config = render_config(settings)
        names = {n for s in config.settings for n in catalogue.names(s, config.categories)}
        return tuple(sorted(names)), tuple(palette.ALL)
    assert path is not None
    found = {o.category for scene in _annotated(kind, path, split)[0] for o in scene.objects}
    return tuple(sorted(found)), ()
