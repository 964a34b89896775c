"""Writes a dataset: scenes from sources, questions about them, as TFDS, LLaVA JSON and VLMEvalKit TSV.

    python -m launch.generate --dataset quickstart --out data/quickstart
    python -m launch.generate --dataset spatial_vqa --input omni3d:Omni3D/KITTI_test.json \\
        --input omni3d:Omni3D/SUNRGBD_test.json --out data/spatial_vqa --formats tfds,tsv
    python -m launch.generate --dataset 3di_ft1m --source rendered --questions 20000 --out data/ft \\
        --exclude data/spatial_vqa
    python -m launch.generate --dataset 3di_pb_oi1m --input pseudo_labels:openimages --out data/oi --engine ray
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from launch import cli, pseudo_estimators
from launch import config as configs
from spatialllm_jax import engines
from spatialllm_jax.data import formats, generation
from spatialllm_jax.data.planning import opened_sources, plans_of
from spatialllm_jax.data.storage import open_split
from spatialllm_jax.errors import UserError
from spatialllm_jax.sources import sources

_CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "data"
_FORMATS = ("tfds", "llava", "tsv")


def _arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__ or "", epilog="--config.KEY=VALUE overrides any field of the dataset's config")
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(_names())} (configs/data)")
    parser.add_argument("--out", required=True, help="folder to write; appears when it is complete")
    parser.add_argument("--source", choices=sources.KINDS, default=None, help="where scenes come from")
    parser.add_argument("--input", action="append", default=[], metavar="[SPLIT=][KIND:]PATH",
                        help="annotation file or folder; may be repeated. KIND is --source if not written, SPLIT the "
                             "dataset's first split (or --split)")
    parser.add_argument("--count", default="", help="most scenes: a number, or per split: train=4000,test=600")
    parser.add_argument("--questions", default="", help="most questions, in the same way")
    parser.add_argument("--seed", type=int, default=None, help="seed of scenes and questions")
    parser.add_argument("--split", default=None, help="write only this split")
    parser.add_argument("--exclude", action="append", default=[], metavar="FOLDER",
                        help="dataset whose pictures, and near-duplicates of them, stay out; may be repeated")
    parser.add_argument("--region-style", choices=("mark", "text", "name"), default=None, help="of all families")
    parser.add_argument("--register", choices=("full", "short"), default=None, help="of all families")
    parser.add_argument("--forms", default="", metavar="FORM[=WEIGHT],...",
                        help="of all families: which (open), choice (a letter), yes_no; e.g. which,choice=2")
    parser.add_argument("--workers", type=int, default=2, help="processes; the bytes do not depend on it")
    parser.add_argument("--engine", choices=engines.NAMES, default="local",
                        help="local processes, or Ray: an actor per accelerator on many machines; the bytes do not "
                             "depend on it")
    parser.add_argument("--ray-address", default="", help="cluster to join, such as auto; one is started here if empty")
    parser.add_argument("--labels", default="", metavar="FOLDER",
                        help="what is known about plain pictures so far (default: OUT.labels); a run that was killed "
                             "goes on from it")
    parser.add_argument("--formats", default="tfds", help="tfds is always written; add llava and tsv")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder with other settings")
    return parser


def _names() -> list[str]:
    return sorted(p.stem for p in _CONFIGS.glob("*.py") if p.stem not in ("__init__", "families"))


def _numbers(flag: str, text: str, splits: list[str]) -> dict[str, int]:
    if not text:
        return {}
    try:
        if "=" not in text:
            return dict.fromkeys(splits, _positive(text))
        return {key: _positive(value) for key, value in (pair.split("=") for pair in text.split(","))}
    except ValueError:
        raise UserError(f"{flag} {text!r} must be a positive number, or SPLIT=NUMBER,SPLIT=NUMBER") from None


def _weights(text: str) -> dict[str, float]:
    try:
        pairs = [part.partition("=") for part in text.split(",") if part]
        return {name: float(weight or 1) for name, _, weight in pairs}
    except ValueError:
        raise UserError(f"--forms {text!r} must be FORM or FORM=WEIGHT, separated by commas") from None


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
                                               ("forms", _weights(args.forms))) if value}
    splits = [args.split] if args.split else list(config.splits)
    counts = _numbers("--count", args.count, splits)
    limits = _numbers("--questions", args.questions, splits)
    out = Path(args.out)
    if args.workers < 1:
        raise UserError(f"--workers {args.workers} must be at least 1")
    engine = engines.engine_of(args.engine, args.workers, args.ray_address)
    # Models fill a machine by themselves: without Ray, one process labels plain pictures.
    labeller = engine if args.engine == "ray" else engines.Local()
    with tempfile.TemporaryDirectory(prefix="scenes-") as spool:
        opened = opened_sources(config, args.input, args.split, Path(spool), Path(args.labels or f"{out}.labels"),
                                labeller, pseudo_estimators.open_estimators)
        plans = plans_of(config, opened, counts, limits, overrides)
        result = _write(config, plans, wanted, out, args, engine)
    _report(out, result)
    return {"folder": args.out, "reused": bool(result.get("reused")), "splits": result["splits"],
            "ignored": result["ignored"], "left_out": result.get("left_out", {}), "short": result.get("short", {})}


def _write(config: Any, plans: list[generation.SplitPlan], wanted: list[str], out: Path, args: argparse.Namespace,
           engine: engines.Engine) -> dict[str, Any]:
    used = [source for plan in plans for source in plan.sources]
    card = {
        "dataset": args.dataset,
        "sources": {plan.name: [{"kind": s.kind, "name": s.name, "scenes": s.count, "contents": dict(s.contents)}
                                for s in plan.sources] for plan in plans},
        "settings": {"plans": [plan.settings() for plan in plans], "formats": sorted(wanted),
                     "exclude": sorted(Path(folder).name for folder in args.exclude)},
        "ignored": _sum(source.ignored for source in used),
        "licences": sorted({source.licence for source in used}),
    }

    def extras(folder: Path) -> None:
        for plan in plans:
            source = open_split(folder, plan.name)
            if "llava" in wanted:
                formats.write_llava(folder / "llava", plan.name, source)
            if "tsv" in wanted:
                formats.write_tsv(folder / "tsv" / f"{config.name}_{plan.name}.tsv", source, plan.name)

    return generation.generate(out, config.name, plans, card, engine=engine, overwrite=args.overwrite,
                               exclude=[Path(folder) for folder in args.exclude], extras=extras)


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in counts:
        for reason, number in part.items():
            total[reason] = total.get(reason, 0) + number
    return dict(sorted(total.items()))


def _report(out: Path, result: Mapping[str, Any]) -> None:
    verb = "is there already, with the same settings" if result.get("reused") else "written"
    for split, counts in result["splits"].items():
        print(f"{out} {split}: {counts['images']} images, {counts['questions']} questions ({verb})")
    for split, missing in result.get("short", {}).items():
        types: Counter[str] = Counter()
        for name, number in missing.items():
            types[name.partition(":")[0]] += number
        lacking = ", ".join(f"{kind} {n}" for kind, n in types.items())
        logging.warning("split %s lacks %d questions (%s): its scenes hold no more clear cases; CARD.md has the "
                        "answers that are missing", split, types.total(), lacking)


if __name__ == "__main__":
    cli.run(main)
