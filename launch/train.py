"""Trains a row of the roadmap: `python -m launch.train --config=configs/roadmap.py:align_in166k`.

Or a pose estimator (docs/pose.md): `python -m launch.train --config=configs/pose.py`.

Every value of the config can be overridden: `--config.stages.tune.steps=200 --config.mesh.fsdp=8`.
A run is resumed by the same command.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

from absl import logging

from launch import cli
from launch import config as configs
from spatialllm_jax.errors import UserError


def main(argv: list[str]) -> dict[str, Any]:
    """Parses, trains, returns the summary."""
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, metavar="FILE[:ROW]",
                        help="e.g. configs/roadmap.py:align_in166k; override with --config.key=value")
    parser.add_argument("--workdir", help="folder of the run (default: runs/ROW-SIZE)")
    parser.add_argument("--dry-run", action="store_true",
                        help="train nothing: print parameters, steps, operations and hours of every stage")
    parser.add_argument("--assume", default="NVIDIA A100:8:0.45", metavar="DEVICE:NUMBER:MFU",
                        help="the machine that --dry-run counts hours for")
    parser.add_argument("--cores", help="CPU cores to stay on, e.g. 0 or 0,1 (Linux)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard files into each stage")
    parser.add_argument("--wandb", default="", metavar="PROJECT", help="also log to Weights & Biases")
    parser.add_argument("--distributed", action="store_true",
                        help="one of several processes; SLURM, TPU slices, Open MPI and Kubernetes tell which")
    parser.add_argument("--coordinator", default="", metavar="HOST:PORT", help="where nothing tells: process 0 ...")
    parser.add_argument("--processes", type=int, default=0, help="... how many there are ...")
    parser.add_argument("--process-id", type=int, default=-1, help="... and which this is")
    parser.add_argument("--local-devices", type=int, default=0,
                        help="devices this process drives, where the cluster would give it one (SLURM, Open MPI)")
    cli.machine_flags(parser, "three steps (default: WORKDIR/profile)")
    plain, overrides = configs.split_arguments(argv)
    args = parser.parse_args(plain)
    config = configs.load(args.config, overrides)
    workdir = Path(args.workdir or f"runs/{config.row}-{config.size}")
    pose = config.get("task") == "pose"
    if args.dry_run and pose:
        raise UserError("--dry-run counts rows of the roadmap, not pose estimators; leave it out")
    if args.dry_run:
        return _cost(config.to_dict(), args.assume)
    if args.cores:
        _pin(args.cores)
    logging.set_verbosity(logging.INFO if not args.quiet else logging.WARNING)
    cli.prepare(args)
    # Imported late: bad flags must not wait for JAX.
    from convert.folders import open_weights
    from spatialllm_jax.parallel import hosts
    from spatialllm_jax.training.loop import Watch
    from spatialllm_jax.training.metrics import Trackers
    from spatialllm_jax.training.profiling import StepTrace

    hosts.start(args.coordinator, args.processes, args.process_id, args.distributed, args.local_devices)
    logging.info("%s", hosts.described())
    started = time.monotonic()
    watch = Watch(not args.quiet, Trackers(args.tensorboard, args.wandb), profile=StepTrace(
        "" if args.profile is None else args.profile or str(workdir / "profile")))
    train = _pose if pose else _row
    summary = train(config.to_dict(), workdir, open_weights=open_weights, watch=watch)
    summary["seconds"] = round(time.monotonic() - started, 1)
    if not hosts.is_first():
        return summary
    for name, metrics in summary["stages"].items():
        if metrics:
            print(f"{name}: step {metrics['step']} loss {metrics['loss']:.4f} accuracy {metrics['accuracy']:.3f}")
    print(f"model: {summary['model']}")
    return summary


def _row(*args: Any, **kwargs: Any) -> dict[str, Any]:
    from spatialllm_jax.training.run import train_row

    return train_row(*args, **kwargs)


def _pose(*args: Any, **kwargs: Any) -> dict[str, Any]:
    from spatialllm_jax.pose.scoring import table
    from spatialllm_jax.pose.training import train

    summary, scores = train(*args, **kwargs)
    print(table({summary["row"]: scores}))
    return summary


def _cost(config: dict[str, Any], assume: str) -> dict[str, Any]:
    from spatialllm_jax.models.flops import PEAKS, peak
    from spatialllm_jax.training.cost import row_cost, text_table

    try:
        device, number, mfu = assume.rsplit(":", 2)
        speed, devices, share = peak(device), int(number), float(mfu)
        if speed is None or devices < 1 or not 0 < share <= 1:
            raise ValueError
    except ValueError:
        raise UserError(f"--assume {assume} is not DEVICE:NUMBER:MFU, such as 'NVIDIA A100:8:0.45'; devices are "
                        f"{', '.join(PEAKS)}") from None
    costs = row_cost(config, devices=devices, peak=speed, mfu=share)
    print(f"row {config['row']} on {devices} x {device} at an assumed MFU of {share:.0%}\n{text_table(costs)}")
    return {"row": config["row"], "assume": assume, "stages": [dataclasses.asdict(cost) for cost in costs]}


def _pin(cores: str) -> None:
    """Keeps this process on some cores; before JAX starts, so that it makes as many threads."""
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("--cores needs Linux; leave it out here")
    try:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    except (ValueError, OSError):
        raise UserError(f"--cores {cores}: give numbers of cores of this machine, such as 0 or 0,1") from None


if __name__ == "__main__":
    cli.run(main)
