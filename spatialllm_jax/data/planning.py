"""A dataset's config and inputs -> the plans of its splits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spatialllm_jax.data.generation import SplitPlan
from spatialllm_jax.data.selection import selection_config
from spatialllm_jax.engines import Engine
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.config import QuestionConfig, question_config
from spatialllm_jax.sources import sources

# Keys of a split that are not the selection's.
_SPLIT_KEYS = ("count", "families", "even_sources")


def _split_seed(config: Any, split: str) -> int:
    """Even seeds are for training and odd ones for testing, so no rendered scene can be in both."""
    return 2 * config.seed + (split == "test")


def opened_sources(config: Any, inputs: Sequence[str], only: str | None, spool: Path, labels: Path,
                   engine: Engine, opener: Callable[[Any], Any]) -> dict[str, tuple[sources.SceneSource, ...]]:
    """The sources of every split to write; annotations are read here, once.

    Args:
        config: of the dataset (configs/data).
        inputs: values of `--input`.
        only: the one split to write, or None.
        spool: folder for scene files.
        labels: folder for the labels of plain pictures; stays.
        engine: what labels them.
        opener: loads the models that do (`sources.open_pictures`).

    Raises:
        UserError: for an unknown split, a missing or superfluous input, or files that cannot be used.
    """
    splits = list(config.splits)
    if only is not None and only not in splits:
        raise UserError(f"dataset {config.name!r} has no split {only!r}; it has {', '.join(splits)}")
    given: dict[str, list[tuple[str, str]]] = {}
    for text in inputs:
        split, kind, path = sources.parse_input(text, config.source, splits)
        if kind in ("", "rendered"):
            raise UserError(f"--input {text!r} does not say what it is; write KIND:PATH or pass --source, one of "
                            f"{', '.join(k for k in sources.KINDS if k != 'rendered')}")
        given.setdefault(split or only or splits[0], []).append((kind, path))
    found: dict[str, tuple[sources.SceneSource, ...]] = {}
    if config.source == "rendered" and not given:
        for name in splits:
            found[name] = (sources.open_rendered(config.render.to_dict(), _split_seed(config, name)),)
    elif not given:
        what = f"source {config.source!r}" if config.source else f"dataset {config.name!r}"
        raise UserError(f"{what} needs --input [KIND:]PATH, the annotations to read; or pass --source rendered")
    for name, entries in given.items():
        thresholds = "test" if name == "test" else "train"
        found[name] = tuple(_opened(config, kind, path, thresholds, spool / f"{name}-{k}.jsonl",
                                    labels / f"{name}-{k}", engine, opener) for k, (kind, path) in enumerate(entries))
    return {name: opened for name, opened in found.items() if only in (None, name)}


def _opened(config: Any, kind: str, path: str, thresholds: str, spool: Path, labels: Path, engine: Engine,
            opener: Callable[[Any], Any]) -> sources.SceneSource:
    if kind != sources.PSEUDO_LABELS:
        return sources.open_annotated(kind, path, thresholds, spool)
    settings = config.pseudo_labels.to_dict() if "pseudo_labels" in config else {}
    return sources.open_pictures(path, thresholds, spool, settings, labels, engine, opener)


def plans_of(config: Any, opened: Mapping[str, tuple[sources.SceneSource, ...]], counts: Mapping[str, int],
             limits: Mapping[str, int], overrides: Mapping[str, Any]) -> list[SplitPlan]:
    """The plans of a dataset's splits.

    Raises:
        UserError: for an unknown split, family or setting.
    """
    for name in (*counts, *limits):
        if name not in config.splits:
            raise UserError(f"dataset {config.name!r} has no split {name!r}; it has {', '.join(config.splits)}")
    plans = []
    for name, found in opened.items():
        settings = config.splits[name].to_dict()
        categories = tuple(sorted({c for source in found for c in source.categories}))
        colours = tuple(sorted({c for source in found for c in source.colours})) if len(found) > 1 else found[0].colours
        families = tuple(_family(config, name, family, overrides, categories, colours)
                         for family in settings["families"])
        chosen = {key: value for key, value in settings.items() if key not in _SPLIT_KEYS}
        if name in limits:
            chosen["questions"] = limits[name]
        plans.append(SplitPlan(
            name, found, _split_seed(config, name), counts.get(name, settings["count"]), families,
            selection_config(name, chosen), settings.get("even_sources", False)))
    return plans


def _family(config: Any, split: str, name: str, overrides: Mapping[str, Any], categories: tuple[str, ...],
            colours: tuple[str, ...]) -> QuestionConfig:
    if name not in config.families:
        raise UserError(f"split {split!r} of {config.name!r} wants family {name!r}, which has no settings")
    family = question_config(name, {**config.families[name].to_dict(), **overrides})
    return dataclasses.replace(family, categories=categories, colours=colours)
