"""Scores a model on SpatialVQA: `python -m launch.evaluate --model RUN/tune/model --data data/spatial_vqa`.

Writes `predictions.jsonl` and `scores.json` beside each other, and prints accuracy per type with n, 95 %
intervals and chance. `--blind` adds the same model on blanked pictures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch import cli
from spatialllm_jax.errors import UserError


def main(argv: list[str]) -> dict[str, Any]:
    """Parses, evaluates, returns the scores."""
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder, e.g. runs/align_in166k-tiny/tune/model")
    parser.add_argument("--data", required=True, help="dataset folder written by launch.generate")
    parser.add_argument("--split", default="test", help="split of the dataset")
    parser.add_argument("--out", help="folder for predictions and scores (default: MODEL/../evaluation)")
    parser.add_argument("--answer", default="score", choices=("score", "generate"),
                        help="choose the likeliest option, or read the model's own words")
    parser.add_argument("--blind", action="store_true", help="also evaluate with every picture blanked")
    parser.add_argument("--limit", type=int, default=0, help="only the first N images (0: all)")
    parser.add_argument("--batch-size", type=int, default=16, help="rows per program call")
    parser.add_argument("--row-length", type=int, default=512, help="tokens per row while scoring options")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="longest generated answer")
    parser.add_argument("--features", help="folder of stored features: pictures are encoded once, over all runs")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)

    from convert.engines import load_engine
    from spatialllm_jax.data.storage import open_split
    from spatialllm_jax.evaluation import spatial_vqa

    records = open_split(args.data, args.split)
    count = min(args.limit, len(records)) if args.limit > 0 else len(records)
    items = spatial_vqa.select(records[index] for index in range(count))
    engine = load_engine(args.model, batch_size=args.batch_size)
    if args.features:
        from spatialllm_jax.training.features import stored_features
        from spatialllm_jax.training.partition import flatten

        engine.features = stored_features(
            engine.model.config, flatten(engine.params), [(args.data, args.split)],
            image_size=engine.settings.image_size, resize=engine.settings.resize, folder=args.features,
            show_progress=not args.quiet)[args.data, args.split]
    out = Path(args.out or Path(args.model).parent / "evaluation")
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"model": args.model, "data": args.data, "answer": args.answer}
    for name in ("scores", "blind") if args.blind else ("scores",):
        predictions = spatial_vqa.predict(
            engine, items, mode=args.answer, blind=name == "blind", row_length=args.row_length,
            max_new_tokens=args.max_new_tokens, show_progress=not args.quiet)
        lines = "".join(json.dumps(prediction.as_dict()) + "\n" for prediction in predictions)
        _write(out / ("predictions.jsonl" if name == "scores" else "predictions_blind.jsonl"), lines)
        result[name] = spatial_vqa.score(predictions)
    _write(out / "scores.json", json.dumps(result, indent=1))
    print(table({name: result[name] for name in ("scores", "blind") if name in result}))
    return result


def table(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """A text table of score trees, one column each; rows are overall and the types."""
    if not columns:
        raise UserError("there are no scores to show")
    first = next(iter(columns.values()))
    lines = [f"{'':18s}{'n':>6s}{'chance':>8s}" + "".join(f"{name:>26s}" for name in columns)]
    for row in ("overall", *first["by_type"]):
        cells = [scores["overall"] if row == "overall" else scores["by_type"][row] for scores in columns.values()]
        line = f"{row:18s}{cells[0]['n']:6d}{100 * cells[0]['chance']:7.1f}%"
        for cell in cells:
            interval = f"[{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
            unread = f" {cell['parse_failures']} unread" if cell["parse_failures"] else ""
            text = f"{100 * cell['acc']:.1f}% {interval}{unread}"
            line += f"{text:>26s}"
        lines.append(line)
    macros = "".join(f"{100 * scores['macro']:25.1f}%" for scores in columns.values())
    lines.append(f"{'macro over types':32s}{macros}")
    return "\n".join(lines)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


if __name__ == "__main__":
    cli.run(main)
