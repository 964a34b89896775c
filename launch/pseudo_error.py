"""Measures how often the pseudo-label engine answers wrongly, on rendered scenes whose truth is known.

    python -m launch.pseudo_error --scenes 200
    python -m launch.pseudo_error --scenes 50 --levels "true;all, mild" --sizes none --plot error.png

True depth, masks, cameras and orientations go through the same code as those of models, without noise and with more
and more of it; a flip is a question that is asked and answered otherwise than the true boxes say.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from launch import cli
from spatialllm_jax.engines import Local
from spatialllm_jax.errors import UserError
from spatialllm_jax.sources.pseudo_labels import levels
from spatialllm_jax.sources.pseudo_labels.config import PseudoLabelConfig
from spatialllm_jax.sources.pseudo_labels.error import NUMBERS, TYPES, Tally
from spatialllm_jax.sources.rendered.config import RenderConfig

_SHORT = {"closer_to_camera": "camera", "closer_to_object": "object", "facing_camera": "faces cam",
          "facing_object": "faces obj", "same_direction": "same dir", "higher": "higher", "on_which_side": "side",
          "view_left_right": "v left", "view_above_below": "v above", "view_front_behind": "v front", "depth": "depth",
          "distance": "distance", "azimuth": "azimuth"}
_TOLD = {"judged": "margins widened by what is uncertain, the noise being known (two standard deviations)",
         "default": "margins widened by the default settings of pseudo_labels.judging",
         "unjudged": "margins alone, the estimates taken at their word"}


def main(argv: list[str]) -> dict[str, Any]:
    """Prints flips per type, level and mode; returns them."""
    parser = cli.parser(__doc__ or "")
    parser.add_argument("--scenes", type=int, default=200, help="rendered scenes")
    parser.add_argument("--seed", type=int, default=1, help="of scenes and noise")
    parser.add_argument("--image-size", type=int, default=224, help="side of the pictures in pixels")
    parser.add_argument("--levels", default="", help="names of the table's rows, separated by semicolons; all if empty")
    parser.add_argument("--sizes", choices=("catalogue", "none"), default="catalogue",
                        help="whether the largest sizes of categories are known (pseudo_labels.sizes)")
    parser.add_argument("--random-models", type=int, default=20, metavar="N",
                        help="scenes on which small random models are tried as well: the floor")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--plot", default="", metavar="FILE", help="also draw the shares of flips (PNG, SVG)")
    args = parser.parse_args(argv)
    chosen = tuple(name.strip() for name in args.levels.split(";") if name.strip()) or tuple(levels.LEVELS)
    for name in chosen:
        if name not in levels.LEVELS:
            raise UserError(f"--levels {name!r} is unknown; choose from {'; '.join(levels.LEVELS)}")
    if min(args.scenes, args.workers) < 1 or min(args.random_models, args.seed) < 0:
        raise UserError("--scenes and --workers must be at least 1, --random-models and --seed not negative")
    if args.plot:       # before the long work, too
        _check_plot(args.plot)
    if args.random_models:
        from spatialllm_jax.sources.pseudo_labels.models import weights

        weights.torch_module()      # before the long work, if it is missing
    sizes = levels.largest_sizes() if args.sizes == "catalogue" else {}
    measure = levels.Measure(RenderConfig(image_size=args.image_size), args.seed,
                             PseudoLabelConfig(sizes=sizes, vocabulary=tuple(levels.largest_sizes())), chosen)
    total: dict[tuple[str, str], Tally] = {}
    results = Local(args.workers).map(functools.partial(_same, measure), range(args.scenes))
    for found in tqdm(results, total=args.scenes, desc="measuring", unit="scene"):
        levels.add(total, found)
    if args.random_models:
        _random(measure, args.random_models, total)
    for mode in levels.MODES:
        _print(mode, {name: tally for (name, other), tally in total.items() if other == mode})
    if args.plot:
        _plot(Path(args.plot), total)
    return {"scenes": args.scenes, "sizes": args.sizes, "levels": {
        f"{name} | {mode}": _plain(tally) for (name, mode), tally in total.items()}}


def _same(measure: levels.Measure) -> levels.Measure:
    return measure


def _random(measure: levels.Measure, count: int, total: dict[tuple[str, str], Tally]) -> None:
    from spatialllm_jax.sources.pseudo_labels.models.opening import open_estimators
    from spatialllm_jax.sources.pseudo_labels.models.small import write_small_models

    with tempfile.TemporaryDirectory() as folder:
        models = write_small_models(Path(folder), measure.config.vocabulary)
        estimators = open_estimators(dataclasses.replace(measure.config, models=models))
        for index in tqdm(range(count), desc=levels.RANDOM, unit="scene"):
            levels.add(total, levels.measure_models(measure, index, estimators))


def _plain(tally: Tally) -> dict[str, Any]:
    return {"objects": tally.objects, "found": tally.found,
            "types": {kind: {"clear": tally.clear[kind], "asked": tally.asked[kind], "flipped": tally.flipped[kind],
                             "vague": tally.vague[kind], "lost": tally.lost[kind]} for kind in TYPES}}


def _print(mode: str, tallies: Mapping[str, Tally]) -> None:
    """Flips of questions asked, per level and type; below, how many clear ones are asked at all."""
    if not tallies:
        return
    first = next(iter(tallies.values()))
    print(f"\n{mode}: {_TOLD[mode]}; flipped/asked")
    print(f"{'':18s}" + "".join(f"{_SHORT[kind]:>11s}" for kind in TYPES) + f"{'all':>13s}{'found':>8s}")
    clear = "".join(f"{first.clear[kind]:>11d}" for kind in TYPES)
    print(f"{'clear in truth':18s}{clear}{first.clear.total():>13d}")
    for name, tally in tallies.items():
        cells = "".join(f"{f'{tally.flipped[kind]}/{tally.asked[kind]}':>11s}" for kind in TYPES)
        everything = f"{tally.flipped.total()}/{tally.asked.total()}"
        print(f"{name:18s}{cells}{everything:>13s}{tally.found / max(tally.objects, 1):>8.0%}")


def _check_plot(file: str) -> None:
    cli.check_file("--plot", file)
    if Path(file).suffix.lower() not in (".png", ".svg"):
        raise UserError(f"--plot {file}: the format is told by the name; write FILE.png or FILE.svg")
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError('--plot needs the package matplotlib, which is not installed; run: pip install '
                        '"spatialllm-jax[report]"')


def _plot(path: Path, total: Mapping[tuple[str, str], Tally]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name, mode in total if mode == "judged"]
    figure, axes = plt.subplots(1, 2, figsize=(12, 0.35 * len(names) + 1.5), sharey=True)
    kinds = [kind for kind in TYPES if kind not in NUMBERS]
    for offset, mode in enumerate(levels.MODES):
        places = [k + 0.27 * (offset - 1) for k in range(len(names))]
        tallies = [total[name, mode] for name in names]
        flipped = [sum(t.flipped[k] for k in kinds) / max(sum(t.asked[k] for k in kinds), 1) for t in tallies]
        asked = [sum(t.asked[k] for k in kinds) / max(sum(t.clear[k] for k in kinds), 1) for t in tallies]
        axes[0].barh(places, [100 * share for share in flipped], 0.27, label=mode)
        axes[1].barh(places, [100 * share for share in asked], 0.27, label=mode)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("answers that flip, % of those asked")
    axes[1].set_xlabel("questions asked, % of those clear in the truth")
    axes[1].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")     # the suffix tells the format
    figure.savefig(partial, dpi=110)
    partial.replace(path)
    plt.close(figure)


if __name__ == "__main__":
    cli.run(main)
