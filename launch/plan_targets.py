"""`launch.plan` for the machines that the full-size stage 2 is meant for; docs/plan.md holds what it found.

    python -m launch.plan_targets --out runs/plan          # make plan
    python -m launch.plan_targets --only a100-80gb,v5e     # those whose name begins so

Every target is compiled in a process of its own and appended to `plans.jsonl`; `table.md` has a line for each.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from launch import cli
from spatialllm_jax.errors import UserError
from spatialllm_jax.planning.targets import GIB

CONFIG = "--config=configs/roadmap.py:align_in166k"
# Rows of 2,048 positions and three pictures, packed.
ROWS = ("--config.stages.tune.rows.length=2048 --config.stages.tune.rows.max_length=0 "
        "--config.stages.tune.rows.images=3")
TARGETS = {
    "a100-80gb": "--target=a100-80gb:8 --rows 16",
    "a100-80gb-selective": "--target=a100-80gb:8 --rows 16 --config.model.remat=selective",
    "a100-80gb-dots": "--target=a100-80gb:8 --rows 8 --config.model.remat=dots",
    "a100-80gb-tensor": "--target=a100-80gb:8 --rows 16 --config.mesh.fsdp=4 --config.mesh.tensor=2",
    "a100-40gb": "--target=a100-40gb:8 --rows 8 --config.stages.tune.accumulate=2",
    "h100": "--target=h100:8 --rows 16",
    "v5p-16": "--target=v5p:2x2x2 --rows 8",
    "v5e-64": "--target=v5e:8x8 --rows 4",
    "v4-8": "--target=v4:2x2x1 --rows 1 --config.stages.tune.optimizer.moment_dtype=bfloat16",
}


def main(argv: list[str]) -> dict[str, Any]:
    """Plans every target; returns the plans by name."""
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/plan", help="folder of plans.jsonl and table.md")
    parser.add_argument("--only", default="", help="beginnings of names, separated by commas")
    args = parser.parse_args(argv)
    names = [name for name in TARGETS if not args.only or name.startswith(tuple(args.only.split(",")))]
    if not names:
        raise UserError(f"--only {args.only}: no target begins so; there are {', '.join(TARGETS)}")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    plans: dict[str, Any] = {}
    for name in names:
        command = f"python -m launch.plan {CONFIG} {ROWS} {TARGETS[name]}"
        print(f"\n{name}: {command}", flush=True)
        done = subprocess.run([sys.executable, *shlex.split(command)[1:], "--json"], capture_output=True, text=True,
                              check=False)
        *shown, last = done.stdout.splitlines() or [""]
        print("\n".join(shown) or done.stderr[-2000:], flush=True)
        if last.startswith("{"):
            plans[name] = {"name": name, "command": command, **json.loads(last)}
            with (out / "plans.jsonl").open("a") as file:
                file.write(json.dumps(plans[name], sort_keys=True) + "\n")
    (out / "table.md").write_text(table(plans))
    print("\n" + table(plans))
    return plans


def table(plans: dict[str, Any]) -> str:
    """The plans as a Markdown table."""
    lines = ["| target | rows per device x accumulate | peak GiB of budget | executed / useful | sent GB per device | "
             "step s | samples/s | MFU | compiled in s |", "|" + "---|" * 9]
    for name, plan in plans.items():
        memory, roofline, flops = plan["memory"], plan["roofline"], plan["flops"]
        sent = sum(found["sent"] for found in plan["collectives"].values()) / 1e9
        estimate = ("", "", "") if roofline is None else (
            f"{roofline['seconds']:.2f}", f"{roofline['samples_per_second']:.1f}", f"{roofline['mfu']:.1%}")
        fits = "" if plan["fits"] else " (does not fit)"
        ratio = f"{flops['ratio']:.3f}" if flops["ratio"] else ""
        lines.append(f"| {name} | {plan['rows']} x {plan['accumulate']} | {memory['peak'] / GIB:.1f} of "
                     f"{memory['budget'] / GIB:.1f}{fits} | {ratio} | {sent:.1f} | {' | '.join(estimate)} | "
                     f"{plan['program']['compile_seconds']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    cli.run(main)
