"""The pose estimator around its training: pictures to learn from, scores, one picture, and all of it at once.

    python -m launch.pose render --out runs/pose/data --meshes assets          # train and never-seen meshes
    python -m launch.pose evaluate --model RUN/head/model --data imagenet3d    # another folder's val lists
    python -m launch.pose estimate --model RUN/head/model --image car.jpg --box 40,60,300,220
    python -m launch.pose demo --assets assets                                 # docs/pose.md; a quarter of an hour

`python -m launch.train --config=configs/pose.py` trains it.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch import cli, fetch_assets
from launch import config as configs
from spatialllm_jax.errors import UserError
from spatialllm_jax.whole_files import write_whole

CONFIG = "configs/pose.py:rendered"
# What pictures of single objects look like: large enough to see, from near level to well above, and not always upright.
LOOK: dict[str, Any] = {"min_extent": 0.4, "max_extent": 0.9, "min_height": 0.15, "max_roll": 12.0, "stacked": 0.0,
                        "raised": 0.15, "mesh_max_faces": 20_000}


def main(argv: list[str]) -> Mapping[str, Any]:
    """Runs the subcommand that the first argument names."""
    parser = cli.parser(__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="render|evaluate|estimate|demo")
    _render_flags(commands.add_parser("render", help="write pictures of single objects in ImageNet3D's format"))
    scored = commands.add_parser("evaluate", help="score a saved estimator on a folder in ImageNet3D's format")
    scored.add_argument("--model", required=True, help="RUN/head/model of a run of configs/pose.py")
    scored.add_argument("--data", required=True, help="folder with images, annotations and lists")
    scored.add_argument("--split", default="val", choices=("train", "val"), help="which lists")
    scored.add_argument("--limit", type=int, default=0, help="most objects; 0 takes all")
    scored.add_argument("--out", help="file for the scores, as JSON")
    scored.add_argument("--batch-size", type=int, default=16, help="crops per call")
    one = commands.add_parser("estimate", help="poses of what boxes of one picture show")
    one.add_argument("--model", required=True, help="RUN/head/model of a run of configs/pose.py")
    one.add_argument("--image", required=True, help="picture")
    one.add_argument("--box", action="append", required=True, metavar="X1,Y1,X2,Y2", help="pixels; may be repeated")
    demo = commands.add_parser("demo", help="render, train with real and with random features, compare")
    demo.add_argument("--assets", default=str(fetch_assets.folder()),
                      help="folder that launch.fetch_assets filled (dinov2, meshes)")
    demo.add_argument("--out", default="runs/pose", help="folder of the run")
    demo.add_argument("--steps", type=int, default=800, help="updates of each head")
    _picture_flags(demo, "pictures, weights and data order")
    for command in (scored, one, demo, commands.choices["render"]):
        command.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args(argv)
    return {"render": _render, "evaluate": _evaluate, "estimate": _estimate, "demo": _demo}[args.command](args)


def _render_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, help="folder to write; a render that was interrupted goes on")
    parser.add_argument("--meshes", help="folder with .sh3f files, or with the package that holds them "
                                         "(launch.fetch_assets --only meshes); left out, all objects are procedural")
    parser.add_argument("--assets", default="both", choices=("both", "sweethome3d", "procedural"),
                        help="what the train pictures show, where there are meshes; val shows meshes alone")
    parser.add_argument("--categories", default="", help="comma-separated; all that have a front, if left out")
    parser.add_argument("--image-size", type=int, default=224, help="side in pixels")
    _picture_flags(parser, "the scenes")


def _picture_flags(parser: argparse.ArgumentParser, seeded: str) -> None:
    parser.add_argument("--count", default="train=2000,val=500", help="pictures")
    parser.add_argument("--seed", type=int, default=0, help=f"of {seeded}")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes that render")


def _counts(args: argparse.Namespace) -> dict[str, int]:
    """Split -> pictures, val first: a folder is of use as soon as its lists are there. Checks `_picture_flags`."""
    if args.workers < 1 or args.seed < 0:
        raise UserError(f"--workers {args.workers} must be at least 1 and --seed {args.seed} not negative")
    try:
        pairs = {key: int(value) for key, value in (part.split("=") for part in args.count.split(","))}
        if min(pairs.values()) < 1:
            raise ValueError
    except ValueError:
        raise UserError(f"--count {args.count!r} must be train=NUMBER,val=NUMBER with positive numbers") from None
    return dict(sorted(pairs.items(), reverse=True))


def _libraries(folder: str) -> Path:
    """The folder of .sh3f files in or below `folder`, unpacked from the package that lies in it if need be."""
    from spatialllm_jax.sources.rendered.debian import unpack_libraries

    given = Path(folder)
    if any(given.glob("*.sh3f")):
        return given
    package = given / fetch_assets.ASSETS["meshes"].file
    if not package.is_file():
        raise UserError(f"{folder} holds neither .sh3f files nor {package.name}; fetch it with python -m "
                        f"launch.fetch_assets --only meshes --out {folder}")
    unpack_libraries(package, given / "meshes")
    return given / "meshes"


def _render(args: argparse.Namespace) -> dict[str, Any]:
    from spatialllm_jax.pose import rendered
    from spatialllm_jax.sources.rendered.config import RenderConfig

    counts = _counts(args)
    if args.assets == "sweethome3d" and not args.meshes:
        raise UserError("--assets sweethome3d shows meshes only; name their folder with --meshes")
    where: dict[str, Any] = {"assets": "procedural"}
    if args.meshes:
        folder = _libraries(args.meshes)
        where = {"assets": args.assets, "mesh_folder": str(folder),
                 "mesh_cache": str(folder.with_name("mesh_cache"))}
    base = RenderConfig(image_size=args.image_size, **where, **LOOK)
    chosen = tuple(name.strip() for name in args.categories.split(",") if name.strip())
    written = rendered.write(args.out, rendered.splits(base, counts, args.seed, chosen), workers=args.workers)
    print(f"{args.out}: " + ", ".join(f"{name} {number}" for name, number in written.items()))
    return {"folder": args.out, "pictures": written}


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    from tqdm import tqdm

    from spatialllm_jax.pose import estimator, objects, scoring

    if args.limit < 0:
        raise UserError(f"--limit {args.limit} is negative; give a number of objects, or 0 for all")
    if args.out:
        cli.check_file("--out", args.out)
    loaded = estimator.load(args.model, args.batch_size)
    found = objects.read(args.data, args.split, limit=args.limit)
    angles, confidence = [], []
    for start in tqdm(range(0, len(found), args.batch_size), desc="objects", unit="batch"):
        crops = [item.crop(loaded.crop_size, loaded.config.context) for item in found[start:start + args.batch_size]]
        poses = loaded.estimate(np.stack(crops))
        angles.append(poses.angles)
        confidence.append(poses.confidence)
    # Which constant would do best is asked of the scored objects themselves: no training set is at hand.
    scores = scoring.scores(np.concatenate(angles), np.concatenate(confidence), found,
                            np.array([item.angles for item in found]))
    print(scoring.table({Path(args.model).name: scores}))
    if args.out:
        write_whole(Path(args.out), json.dumps(scores.as_dict(), indent=1))
    return scores.as_dict()


def _estimate(args: argparse.Namespace) -> dict[str, Any]:
    from spatialllm_jax.data import images
    from spatialllm_jax.pose import estimator

    try:
        boxes = [[float(part) for part in box.split(",")] for box in args.box]
        if any(len(box) != 4 for box in boxes):
            raise ValueError
    except ValueError:
        raise UserError(f"--box {' '.join(args.box)}: give four numbers, X1,Y1,X2,Y2, in pixels") from None
    try:
        picture = images.decode(Path(args.image).read_bytes(), args.image)
    except OSError as error:
        raise UserError(f"--image {args.image} cannot be read: {error.strerror or error}") from None
    height, width = picture.shape[:2]
    for text, box in zip(args.box, boxes, strict=True):
        if max(map(abs, box)) > 4 * max(height, width):
            raise UserError(f"--box {text} reaches far out of a picture of {width} x {height} pixels; give X1,Y1,X2,Y2 "
                            "in pixels")
    poses = estimator.load(args.model, len(boxes)).estimate_boxes(picture, boxes)
    for box, (azimuth, elevation, theta), sure in zip(args.box, poses.angles, poses.confidence, strict=True):
        print(f"{box}: azimuth {azimuth:.0f}, elevation {elevation:.0f}, theta {theta:.0f} degrees, "
              f"confidence {sure:.2f}")
    return {"angles": poses.angles.tolist(), "confidence": poses.confidence.tolist()}


def _demo(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is there already is reused; an interrupted demo goes on where it stopped."""
    from launch.tiny_rows import Clock, Plan, check_writable, provide_dinov2, same_settings

    assets, out = Path(args.assets), Path(args.out)
    dinov2, libraries = (assets / fetch_assets.ASSETS[name].file for name in ("dinov2", "meshes"))
    cli.at_least_one(args, "steps")
    if set(_counts(args)) != {"train", "val"}:
        raise UserError(f"--count {args.count!r}: the demo trains and scores; give both, train=NUMBER,val=NUMBER")
    for file in (dinov2, libraries):
        if not file.is_file():
            raise UserError(f"{file} does not exist; fetch it with python -m launch.fetch_assets --only dinov2,meshes "
                            f"--out {assets}")
    check_writable(out)
    same_settings(out / "pose.json", {"count": args.count, "steps": args.steps, "seed": args.seed})
    spent, results = Clock(out / "clock.json", 4), {}
    spent("pictures of Sweet Home 3D's and procedural objects", lambda: main([
        "render", "--out", str(out / "data"), "--meshes", str(assets), "--count", args.count, "--seed", str(args.seed),
        "--workers", str(args.workers)]))
    spent("DINOv2 weights", lambda: provide_dinov2(Plan(out, 1.0, args.seed, str(dinov2), args.workers)))
    spent("a head on trained features", lambda: results.update({"trained features": _train(args, out, random=False)}))
    spent("a head on random features", lambda: results.update({"random features": _train(args, out, random=True)}))
    from spatialllm_jax.pose.scoring import table

    summary = {"minutes": round(spent.minutes(), 1), "seed": args.seed,
               "scores": {name: scores.as_dict() for name, scores in results.items()}}
    text = table(results)
    write_whole(out / "summary.json", json.dumps(summary, indent=1))
    write_whole(out / "table.txt", text + "\n")
    print(f"\nnever-seen meshes\n{text}\n\n{summary['minutes']} minutes in all runs of {out}; estimator: "
          f"{out / 'trained-features' / 'head' / 'model'}")
    return summary


def _train(args: argparse.Namespace, out: Path, random: bool) -> Any:
    from spatialllm_jax.pose.training import train

    config = configs.load(CONFIG, [])
    config.seed, config.random_weights = args.seed, random
    config.weights, config.data.path = str(out / "weights" / "dinov2-vit-s14"), str(out / "data")
    config.features, config.training.steps = str(out / "features"), args.steps
    return train(config.to_dict(), out / ("random-features" if random else "trained-features"))[1]


if __name__ == "__main__":
    cli.run(main)
