"""How 3D-aware vision encoders are: `python -m launch.probe --data FOLDER --encoders clip=FOLDER,dinov2=FOLDER`.

Fits linear probes on frozen features under the true 2D boxes of a dataset that launch.generate wrote (paper, 3.2.1):
which side of an object faces the camera, its azimuth, its distance, which of two is closer, and its category.

    --encoders clip=runs/clip/model,dinov2=weights/dinov2-l@18    several encoders (@ a hidden state), and their mixes
    --encoders mae=random:tiny_clip_mae,chance=random:weights/dinov2-l    random weights of a preset's or folder's shape
    --encoders dinov2=weights/dinov2-l@12@18@23                   hidden states of one, to choose `feature_layer`
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch import cli
from spatialllm_jax.errors import UserError
from spatialllm_jax.whole_files import write_whole

RANDOM = "random:"


def main(argv: list[str]) -> dict[str, Any]:
    """Parses, probes, prints a table."""
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="dataset folder written by launch.generate")
    parser.add_argument("--split", default="train", help="split of the dataset")
    parser.add_argument("--encoders", required=True, metavar="NAME=FOLDER[@LAYER...],...",
                        help="encoders to compare: model or transformers folders, or random:PRESET, random:FOLDER; "
                             "layers are hidden states, 0 = embeddings, -2 = LLaVA's, all read in one pass; the one a "
                             "connector would see, if none is written")
    parser.add_argument("--mixes", default="auto", metavar="NAME+NAME,...",
                        help="encoders side by side, each at its first layer; auto: all pairs without random weights, "
                             "none: none")
    parser.add_argument("--image-size", type=int, default=0, help="side in pixels at which pictures are encoded; "
                        "0: each encoder's own (518 for DINOv2), which is slow")
    parser.add_argument("--grid", type=int, default=12, help="side of the map that all encoders are resampled to")
    parser.add_argument("--limit", type=int, default=800, help="number of images; a fifth is held out")
    parser.add_argument("--seed", type=int, default=0, help="of random weights")
    parser.add_argument("--page", help="HTML file to write, with bars")
    args = parser.parse_args(argv)
    if args.image_size < 0:
        raise UserError(f"--image-size {args.image_size} is negative; give pixels, or 0 for the encoder's own")
    if args.limit < 5:
        raise UserError(f"--limit {args.limit} leaves nothing to hold out; give at least 5 images")
    cli.at_least_one(args, "grid")
    if args.page:
        cli.check_file("--page", args.page)
    wanted = _encoders(args.encoders)
    mixes = _mixes(args.mixes, wanted)

    from spatialllm_jax.data.storage import open_split
    from spatialllm_jax.evaluation.probe import compare, table

    encoders = [_load(name, source, layers, args.image_size, args.seed) for name, (source, layers) in wanted.items()]
    source = open_split(args.data, args.split)
    records = [source[index] for index in range(min(args.limit, len(source)))]
    scores = compare(encoders, mixes, records, grid=args.grid)
    print(table(scores))
    if args.page:
        write_whole(Path(args.page), _page(args, scores))
    return {"data": args.data, "encoders": {name: source for name, (source, _) in wanted.items()},
            "scores": {name: found.as_dict() for name, found in scores.items()}}


def _encoders(text: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (folder or random:..., layers)."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for part in text.split(","):
        name, _, source = part.strip().partition("=")
        source, *layers = source.split("@")
        if not name or not source.removeprefix(RANDOM) or name in found or name == "box" or "+" in name:
            raise UserError(f"--encoders {part!r}: write NAME=FOLDER or NAME=FOLDER@LAYER, every name once, none of "
                            "them box and none with a plus")
        try:
            found[name] = source, tuple(int(layer) for layer in layers)
        except ValueError:
            raise UserError(f"--encoders {part!r}: hidden states are whole numbers, as in NAME=FOLDER@6@11") from None
    return found


def _mixes(text: str, wanted: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[tuple[str, ...]]:
    if text == "none":
        return []
    if text == "auto":
        trained = [name for name, (source, _) in wanted.items() if not source.startswith(RANDOM)]
        return list(itertools.combinations(trained, 2))
    mixes = [tuple(name.strip() for name in part.split("+")) for part in text.split(",")]
    for mix in mixes:
        if len(mix) < 2:
            raise UserError(f"--mixes {text}: name two encoders or more per mix, as in clip+dinov2")
        if unknown := [name for name in mix if name not in wanted]:
            raise UserError(f"--mixes {text}: {unknown[0]!r} is none of --encoders ({', '.join(wanted)})")
    return mixes


def _load(name: str, source: str, layers: tuple[int, ...], image_size: int, seed: int) -> Any:
    """The only encoder of `source`, or the one of several that is called `name`."""
    from convert.folders import open_weights
    from spatialllm_jax.evaluation.probe import Encoder
    from spatialllm_jax.models.encoders import encoder_config, encoders_of, load_encoder, random_encoder, resized
    from spatialllm_jax.models.presets import PRESETS, preset
    from spatialllm_jax.models.store import Weights

    where = source.removeprefix(RANDOM)
    if where in PRESETS and source != where:
        weights = Weights(f"preset {where}", preset(where), {}, lambda targets: {})
    else:
        weights = open_weights(where, f"vision/{name}")
    inside = "" if len(encoders_of(weights.config)) == 1 else name
    if source == where:
        config, params = load_encoder(weights, inside, image_size=image_size)
    else:
        config = resized(encoder_config(weights, inside), image_size)
        params = random_encoder(config, seed)
    return Encoder(name, config, params, layers or (config.feature_layer,))


def _page(args: Any, scores: Mapping[str, Any]) -> str:
    """Bars of every score with its interval and chance."""
    from spatialllm_jax.evaluation import report_parts as parts
    from spatialllm_jax.evaluation.report_style import STYLE

    heads = {"side": "which of four sides faces the camera", "azimuth": "azimuth within 30°",
             "depth": "distance within a factor of 1.25", "closer": "which of two is closer", "category": "category"}
    body = []
    for key, head in heads.items():
        rows = [(html.escape(name), "", [parts.bar(cell, "row1")]) for name, found in scores.items()
                if (cell := found.as_dict()[key]) is not None]
        if rows:
            body.append(f"<h2>{html.escape(head)}</h2>{parts.labelled(rows)}")
    return ("<!doctype html><html lang='en'><head><meta charset='utf-8'><title>3D awareness of vision encoders</title>"
            f"<meta name='viewport' content='width=device-width,initial-scale=1'><style>{STYLE}</style></head><body>"
            "<div class='wrap'><header><p class='over'>SpatialLLM-JAX, linear probes</p><h1>3D awareness of vision "
            f"encoders</h1><p class='lead'>Frozen features under the true 2D boxes of {html.escape(args.data)}; a "
            f"fifth of the pictures is held out.</p></header>{''.join(body)}</div></body></html>\n")


if __name__ == "__main__":
    cli.run(main)
