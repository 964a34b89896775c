"""What an encoder's layers know of objects: `python -m launch.probe --weights FOLDER --data FOLDER --layers 6,11`.

Fits linear probes on the features under the true 2D boxes of a rendered dataset: which of four sides faces
the camera, and the category. Choose a vision encoder's `feature_layer` by it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from launch import cli
from spatialllm_jax.errors import UserError


def main(argv: list[str]) -> dict[str, Any]:
    """Parses, probes every layer, prints a table."""
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="model folder with a vision encoder")
    parser.add_argument("--data", required=True, help="dataset folder written by launch.generate")
    parser.add_argument("--split", default="train", help="split of the dataset")
    parser.add_argument("--encoder", default="dinov2", help="name of the encoder in the model folder")
    parser.add_argument("--layers", default="6,11", help="comma-separated hidden states, 0 = embeddings, -2 = LLaVA's")
    parser.add_argument("--image-size", type=int, default=0, help="side in pixels at which pictures are encoded; "
                        "0: the encoder's own (518 for DINOv2), which is slow")
    parser.add_argument("--limit", type=int, default=800, help="number of images; a fifth is held out")
    args = parser.parse_args(argv)
    try:
        layers = [int(part) for part in args.layers.split(",")]
    except ValueError:
        raise UserError(f"--layers {args.layers} is not a list of whole numbers such as 6,11") from None
    if args.image_size < 0:
        raise UserError(f"--image-size {args.image_size} is negative; give pixels, or 0 for the encoder's own")
    if args.limit < 5:
        raise UserError(f"--limit {args.limit} leaves nothing to hold out; give at least 5 images")

    from spatialllm_jax.data.storage import open_split
    from spatialllm_jax.evaluation.probe import probe
    from spatialllm_jax.models import store
    from spatialllm_jax.training.partition import unflatten

    config = store.load_config(args.weights)
    encoder = next((v for v in config.vision if v.name == args.encoder), None)
    if encoder is None:
        raise UserError(f"--encoder {args.encoder}: {args.weights} has {', '.join(v.name for v in config.vision)}")
    if args.image_size:
        encoder = dataclasses.replace(encoder, image_size=args.image_size)
    params = unflatten(store.load_params(args.weights, f"vision/{args.encoder}"))["vision"][args.encoder]
    source = open_split(args.data, args.split)
    records = [source[index] for index in range(min(args.limit, len(source)))]
    scores = probe(encoder, params, records, layers)
    print(f"{'layer':>5s}{'side':>10s}{'95 %':>16s}{'n':>6s}{'category':>12s}{'95 %':>16s}{'n':>6s}")
    for layer, found in scores.items():
        line = f"{layer:5d}"
        for name, width in (("side", 10), ("category", 12)):
            score = found[name]
            interval = f"[{100 * score.low:.1f}, {100 * score.high:.1f}]"
            line += f"{100 * score.acc:{width - 1}.1f}%{interval:>16s}{score.n:6d}"
        print(line)
    return {"weights": args.weights, "data": args.data, "layers": {
        str(layer): {name: score.as_dict() for name, score in found.items()} for layer, found in scores.items()}}


if __name__ == "__main__":
    cli.run(main)
