"""Compiles a stage's real training step for machines that are not here: memory, operations, collectives, an estimate.

    python -m launch.plan --config=configs/roadmap.py:align_in166k --target=a100-80gb:8 --rows 16
    python -m launch.plan --config=configs/roadmap.py:align_in166k --target=v5e:8x8 --config.mesh.tensor=2

Nothing is read but the config: no weights, no data, no tokenizer (the preset's vocabulary stands in).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from absl import logging

from launch import cli
from launch import config as configs
from spatialllm_jax.errors import UserError
from spatialllm_jax.planning import targets


def main(argv: list[str]) -> dict[str, Any]:
    """Parses, compiles, prints; returns the plan. Raises UserError when the step does not fit."""
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, metavar="FILE[:ROW]",
                        help="e.g. configs/roadmap.py:align_in166k; override with --config.key=value")
    parser.add_argument("--target", required=True, metavar="MACHINE:SHAPE",
                        help=f"machines: {', '.join(targets.MACHINES)}; shapes: a number of GPUs, a TPU topology "
                             "(v5e:8x8, v5p:2x2x2)")
    parser.add_argument("--stage", default="", help="which of the config's stages (default: the last)")
    parser.add_argument("--rows", type=int, default=0,
                        help="rows that a device holds at a time (default: from the config's step); with accumulate N, "
                             "a step has N times as many")
    parser.add_argument("--largest", action="store_true",
                        help="search for the largest number of rows, also when these fit")
    parser.add_argument("--no-search", action="store_true", help="do not search when these rows do not fit")
    parser.add_argument("--samples-per-row", type=float, default=0.0, help="for samples/s (default: by mean length)")
    parser.add_argument("--headroom", type=float, metavar="GIB",
                        help="memory to leave beside the program (default: 5 on GPUs, 0 on TPUs)")
    for name in (field.name for field in dataclasses.fields(targets.Shares)):
        parser.add_argument(f"--{name}-share", type=float, metavar="SHARE",
                            help=f"assumption of the roofline (default: {_defaults(name)})")
    parser.add_argument("--dump", metavar="FILE", help="write the optimised program's text")
    plain, overrides = configs.split_arguments(argv)
    args = parser.parse_args(plain)
    config = configs.load(args.config, overrides).to_dict()
    target = targets.parse(args.target, args.headroom)
    shares = target.machine.shares
    for name in dataclasses.asdict(shares):
        value = getattr(args, f"{name}_share")
        if value is not None:
            if not 0 <= value <= 1 or (value == 0 and name != "overlap"):
                raise UserError(f"--{name}-share {value}: give a share between 0 and 1")
            shares = dataclasses.replace(shares, **{name: value})
    if args.rows < 0:
        raise UserError(f"--rows {args.rows}: give at least 1, or leave it out")
    logging.set_verbosity(logging.WARNING)
    targets.prepare(target)
    plan, sentence = _plan(config, target, shares, args)
    if sentence:
        if args.json:
            print(json.dumps(plan, sort_keys=True), flush=True)
        raise UserError(sentence)
    return plan


def _plan(config: dict[str, Any], target: targets.Target, shares: targets.Shares, args: Any,
          ) -> tuple[dict[str, Any], str]:
    """(the plan, why it does not fit)."""
    # Imported late: what the compilers read from the environment is set by now.
    from spatialllm_jax.planning import lowering, report, roofline, search

    job = lowering.job(config, target, targets.devices(target), args.stage, args.rows, args.samples_per_row)
    write = (lambda text: Path(args.dump).write_text(text)) if args.dump else None
    compiled = lowering.compile_step(job, write)
    budget, largest = target.budget, None
    if budget is not None and (args.largest or (compiled.used > budget and not args.no_search)):
        largest = search.largest_rows(lambda rows: lowering.compile_step(job.with_rows(rows)).used, budget,
                                      {job.rows: compiled.used})
    estimate = None if compiled.step is None else roofline.estimate(
        compiled.step, target.machine, job.mesh.size, shares=shares, useful=compiled.useful,
        samples=job.stage.rows.batch_size * job.samples_per_row)
    plan = report.as_values(job, compiled, shares, estimate, largest, search.suggestions(job, compiled, largest))
    print(report.as_text(plan))
    if budget is None or compiled.used <= budget:
        return plan, ""
    gib = targets.GIB
    needed = f"{compiled.used / gib:.1f} GiB" if compiled.used < 2**60 else "more"
    most = "" if largest is None else f"; {largest.rows} rows would fit" if largest.rows else "; not even one row fits"
    advice = f"; try {plan['suggestions'][0]}" if plan["suggestions"] else ""
    return plan, (f"{job.rows} rows per device do not fit: the step needs {needed} of {budget / gib:.1f} GiB on "
                  f"{target}{most}{advice}")


def _defaults(name: str) -> str:
    known = {getattr(machine.shares, name) for machine in targets.MACHINES.values()}
    return " or ".join(f"{value:g}" for value in sorted(known))


if __name__ == "__main__":
    cli.run(main)
