"""Looks at all data of a run before it starts: python -m launch.validate_data --config=configs/roadmap.py:llava15

Every sample is made as training will make it, every picture is opened; no weights, no accelerator. Exit code 0:
train; 1: files are missing or too many samples are of no use (said at the end); 2: a mistake in the command.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from launch import cli
from launch import config as configs
from spatialllm_jax.errors import UserError


def main(argv: list[str]) -> dict[str, Any]:
    """Prints the report and returns it; `ok` says whether training may start."""
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, metavar="FILE[:ROW]",
                        help="e.g. configs/roadmap.py:align_in166k; override with --config.key=value")
    parser.add_argument("--limit", type=int, default=0, help="samples per source; 0 for one per record")
    parser.add_argument("--stage", help="only this stage")
    parser.add_argument("--ways", type=int, default=1, help="data-parallel devices, which rows must divide over")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that tokenise and open pictures")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    plain, overrides = configs.split_arguments(argv)
    args = parser.parse_args(plain)
    if args.limit < 0 or args.ways < 1 or args.threads < 1:
        raise UserError("--limit must not be negative, --ways and --threads must be at least 1")
    config = configs.load(args.config, overrides).to_dict()
    # Imported late: bad flags must not wait for JAX.
    from spatialllm_jax.data import tokenizer as tokenizers
    from spatialllm_jax.training.config import stage_config
    from spatialllm_jax.training.program import model_config
    from spatialllm_jax.training.run import stage_tokenizer, train_tokenizer

    stages = [stage_config(name, tree) for name, tree in config["stages"].items()
              if args.stage in (None, name)]
    if not stages:
        raise UserError(f"--stage {args.stage}: the config has {', '.join(config['stages']) or 'no stages'}")
    tokenizer = tokenizers.load(config["tokenizer"]) if config.get("tokenizer") else \
        train_tokenizer([source for stage in stages for source in stage.sources])
    image_tokens = model_config(config, tokenizer.vocab_size).connector.num_tokens
    result: dict[str, Any] = {"row": config["row"], "stages": {}, "problems": []}
    for stage in stages:
        result["stages"][stage.name] = _stage(stage, stage_tokenizer(stage, tokenizer), image_tokens, config["seed"],
                                              args, result["problems"])
    for problem in result["problems"]:
        print(f"problem: {problem}")
    result["ok"] = not result["problems"]
    print("data is fit to train on" if result["ok"] else "data is not fit to train on")
    return result


def _stage(stage: Any, tokenizer: Any, image_tokens: int, seed: int, args: Any, problems: list[str]) -> dict[str, Any]:
    from spatialllm_jax.data import lengths
    from spatialllm_jax.data.samples import TextConfig
    from spatialllm_jax.data.stream import mix
    from spatialllm_jax.data.validation import check_source

    text = TextConfig(stage.template, stage.rows.longest, image_tokens, stage.system)
    mixture = mix(stage.sources, text, tokenizer, seed=seed)
    result: dict[str, Any] = {"sources": {}}
    usable = True
    for source, part, records in zip(stage.sources, mixture.parts, mixture.records, strict=True):
        label = f"{stage.name}/{source.name}"
        report = check_source(part, records, args.limit, name=label, threads=args.threads,
                              show_progress=not args.quiet)
        result["sources"][source.name] = report.summary()
        problems += [f"stage {stage.name!r}, {problem}" for problem in report.problems(source.name, stage.rows)]
        usable &= report.samples > 0
        _print_source(label, source.path, report)
    if not usable:
        return result
    count = min(args.limit or lengths.MEASURED, mixture.total or lengths.MEASURED)
    sizes, pictures = lengths.table(lengths.read(mixture.samples, count))
    plan = lengths.plan_rows(sizes, pictures, stage.rows, seed=seed, ways=args.ways * stage.accumulate,
                             total=mixture.total)
    padded, grouped = (lengths.padded_density(sizes, pictures, grouped=by_length) for by_length in (False, True))
    result.update(batch_size=plan.batch_size, samples_per_row=round(plan.samples_per_row, 3),
                  samples_per_step=round(plan.samples_per_step, 1), density=round(plan.density, 4),
                  padded_density=round(padded, 4), padded_density_grouped=round(grouped, 4),
                  steps=stage.steps or plan.steps)
    print(f"{stage.name}: {plan}")
    print(f"  padded as LLaVA does, {padded:.1%} of the positions would be used, {grouped:.1%} when grouped by length; "
          f"{result['steps']:,} steps")
    _print_passes(stage, mixture, result)
    return result


def _print_source(label: str, path: str, report: Any) -> None:
    from spatialllm_jax.data.validation import histogram

    print(f"{label} ({path}): {report.records:,} records, {report.samples:,} of {report.drawn:,} samples usable, "
          f"{report.texts:,} without a picture, {report.truncated:,} cut short")
    for reason, number in sorted(report.dropped.items()):
        print(f"  {number:,} dropped: {reason} ({'; '.join(report.examples[reason][:2])})")
    if report.samples:
        found: Mapping[str, Any] = report.summary()
        print(f"  {found['tokens_per_sample']} positions per sample; {found['masked_share']:.1%} of the text masked; "
              "percentiles " + ", ".join(f"{share} %: {length}" for share, length in found["lengths"].items()))
        print("\n".join(f"  {line}" for line in histogram(report.lengths)))


def _print_passes(stage: Any, mixture: Any, result: dict[str, Any]) -> None:
    """How often the stage sees each source: what a mixture by weights leaves to arithmetic."""
    shares = np.array(mixture.counts or [source.weight for source in stage.sources], float)
    drawn = result["steps"] * result["samples_per_step"] * shares / shares.sum()
    for source, number, records in zip(stage.sources, drawn, mixture.records, strict=True):
        result["sources"][source.name]["passes"] = round(float(number / records), 3)
        print(f"  {source.name}: {number:,.0f} samples, {number / records:.2f} passes over its records")


if __name__ == "__main__":
    outcome: dict[str, Any] = {}

    def command(argv: list[str]) -> dict[str, Any]:
        """`main`, with its verdict kept for the exit code."""
        outcome.update(main(argv))
        return outcome

    cli.run(command)
    raise SystemExit(0 if outcome["ok"] else 1)
