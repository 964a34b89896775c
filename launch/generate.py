"""Writes a dataset: scenes from a source, questions about them, as TFDS, LLaVA JSON and VLMEvalKit TSV.

    python -m launch.generate --dataset quickstart --out data/quickstart
    python -m launch.generate --dataset spatial_vqa --source omni3d --input real3d.json --out data/real
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from launch import cli
from launch import config as configs
from spatialllm_jax.data import formats, generation
from spatialllm_jax.data.storage import open_split
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.config import question_config
from spatialllm_jax.sources import sources

_CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "data"
_FORMATS = ("tfds", "llava", "tsv")


def _arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__ or "", epilog="--config.KEY=VALUE overrides any field of the dataset's config")
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(_names())} (configs/data)")
    parser.add_argument("--out", required=True, help="folder to write; appears when it is complete")
    parser.add_argument("--count", default="", help="scenes: a number, or per split: train=4000,test=600")
    parser.add_argument("--seed", type=int, default=None, help="seed of scenes and questions")
    parser.add_argument("--source", choices=sources.KINDS, default=None, help="where scenes come from")
    parser.add_argument("--input", default=None, help="annotation file (omni3d) or folder (kitti)")
    parser.add_argument("--split", default=None, help="write only this split")
    parser.add_argument("--region-style", choices=("mark", "text", "name"), default=None, help="of all families")
    parser.add_argument("--register", choices=("full", "short"), default=None, help="of all families")
    parser.add_argument("--answer-style", choices=("text", "letter"), default=None, help="of all families")
    parser.add_argument("--workers", type=int, default=2, help="processes; the bytes do not depend on it")
    parser.add_argument("--formats", default="tfds", help="tfds is always written; add llava and tsv")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder with other settings")
    return parser


def _names() -> list[str]:
    return sorted(p.stem for p in _CONFIGS.glob("*.py") if p.stem not in ("__init__", "families"))


def plans_of(config: Any, counts: Mapping[str, int], overrides: Mapping[str, Any], only: str | None,
             path: str | None) -> tuple[list[generation.SplitPlan], dict[str, int]]:
    """The plans of a dataset's splits, and the annotations its sources left out.

    Raises:
        UserError: for an unknown split, family or setting, or a source that cannot be read.
    """
    splits = list(config.splits)
    for name in (*counts, *([only] if only else [])):
        if name not in splits:
            raise UserError(f"dataset {config.name!r} has no split {name!r}; it has {', '.join(splits)}")
    annotated = config.source != "rendered"
    if annotated and only is None:
        only = "train" if "train" in splits else splits[0]  # annotation files are one split already
    render = config.render.to_dict()
    plans: list[generation.SplitPlan] = []
    ignored: Mapping[str, int] = {}
    for name in splits:
        if only is not None and name != only:
            continue
        thresholds = "test" if name == "test" else "train"
        size, ignored = sources.source_size(config.source, path, thresholds)
        categories, colours = sources.vocabulary(config.source, path, thresholds, render)
        count = counts.get(name, config.splits[name].count)
        families = []
        for family in config.splits[name].families:
            if family not in config.families:
                raise UserError(f"split {name!r} of {config.name!r} wants family {family!r}, which has no settings")
            settings = {**config.families[family].to_dict(), **overrides}
            families.append(dataclasses.replace(question_config(family, settings), categories=categories,
                                                colours=colours))
        # Even seeds are for training and odd ones for testing, so no scene can be in both.
        scene_seed = 2 * config.seed + (name == "test")
        plans.append(generation.SplitPlan(
            name, config.source, path, thresholds, render, scene_seed, scene_seed,
            count if size is None else min(count, size), tuple(families),
            config.splits[name].get("category_slack", 2)))
    return plans, dict(ignored)


def _counts(text: str, splits: list[str]) -> dict[str, int]:
    if not text:
        return {}
    try:
        if "=" not in text:
            return dict.fromkeys(splits, _positive(text))
        return {key: _positive(value) for key, value in (pair.split("=") for pair in text.split(","))}
    except ValueError:
        raise UserError(f"--count {text!r} must be a positive number, or SPLIT=NUMBER,SPLIT=NUMBER") from None


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise ValueError(text)
    return value


def main(argv: list[str]) -> dict[str, Any]:
    """Writes the dataset; returns its folder and card."""
    argv, config_overrides = configs.split_arguments(argv)
    args = _arguments().parse_args(argv)
    if args.dataset not in _names():
        raise UserError(f"--dataset {args.dataset!r} is unknown; choose from {', '.join(_names())}")
    wanted = [name for name in args.formats.split(",") if name]
    for name in wanted:
        if name not in _FORMATS:
            raise UserError(f"--formats {name!r} is unknown; choose from {', '.join(_FORMATS)}")
    config = configs.load(str(_CONFIGS / f"{args.dataset}.py"), config_overrides)
    if args.seed is not None:
        config.seed = args.seed
    if args.source is not None:
        config.source = args.source
    if config.seed < 0:
        raise UserError(f"--seed {config.seed} must not be negative")
    overrides = {key: value for key, value in (("region_style", args.region_style), ("register", args.register),
                                               ("answer_style", args.answer_style)) if value is not None}
    splits = [args.split] if args.split else list(config.splits)
    plans, ignored = plans_of(config, _counts(args.count, splits), overrides, args.split, args.input)
    card = {
        "source": config.source,
        "settings": {"plans": [_settings(plan) for plan in plans], "formats": sorted(wanted)},
        "ignored": ignored,
        "licence": sources.LICENCES[config.source],
    }

    def extras(folder: Path) -> None:
        for plan in plans:
            source = open_split(folder, plan.name)
            if "llava" in wanted:
                formats.write_llava(folder / "llava", plan.name, source)
            if "tsv" in wanted:
                formats.write_tsv(folder / "tsv" / f"{config.name}_{plan.name}.tsv", source, plan.name)

    result = generation.generate(Path(args.out), config.name, plans, card, workers=args.workers,
                                 overwrite=args.overwrite, extras=extras)
    verb = "is there already, with the same settings" if result.get("reused") else "written"
    for split, counts in result["splits"].items():
        logging.info("%s: %d images, %d questions", split, counts["images"], counts["questions"])
        print(f"{args.out} {split}: {counts['images']} images, {counts['questions']} questions ({verb})")
    return {"folder": args.out, "reused": bool(result.get("reused")), "splits": result["splits"],
            "ignored": ignored}


def _settings(plan: generation.SplitPlan) -> dict[str, Any]:
    return dataclasses.asdict(plan)


if __name__ == "__main__":
    cli.run(main)
