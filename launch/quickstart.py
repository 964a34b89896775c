"""All of SpatialLLM on a laptop: scenes -> questions -> three stages -> spatial answers -> a report.

    python -m launch.quickstart                 # what `make quickstart` runs
    python -m launch.quickstart --budget 4      # four times the training

Two rows of the roadmap are trained at `tiny`: `llama3` (no 3D-informed data) and `align_in166k` (3D-informed
data in stages 1 and 2), with equal budgets and seeds, on the same pictures, with the same mixed encoder. Both
are scored on held-out scenes, and so is the second on blanked pictures. What is there already is reused, so
an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import time
from typing import Any

from launch import cli, tiny_rows
from launch.tiny_rows import Clock, Plan

ROWS = {"llama3": "without 3D data", "align_in166k": "with 3D data"}
MAIN = "align_in166k"


def main(argv: list[str]) -> dict[str, Any]:
    """Parses, runs every part that is not done, prints the table and the path of the report."""
    parser = cli.parser(__doc__.splitlines()[0])
    tiny_rows.add_flags(parser, "runs/quickstart")
    args = parser.parse_args(argv)
    plan = tiny_rows.begin(args, "quickstart.json")

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
