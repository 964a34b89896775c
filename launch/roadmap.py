"""All ten rows of the paper's Table 2 at `tiny`, and the table and Figure 6 drawn from them: `make roadmap`.

    python -m launch.roadmap                    # at most three hours on two cores
    python -m launch.roadmap --rows llama3,ft1m # some of the rows

Every row starts from the same pictures, the same small CLIP and the same DINOv2, with the same steps and seed; rows
differ in encoders, stage 0 and the questions of stages 1 and 2 (configs/roadmap.py). What is there already is reused,
so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import time
from typing import Any

from configs.roadmap import ROWS
from launch import cli, tiny_rows
from launch.tiny_rows import Clock, Plan
from spatialllm_jax.errors import UserError

MAIN = "align_in166k"


def main(argv: list[str]) -> dict[str, Any]:
    """Parses, runs every part that is not done, prints the table and the path of the report."""
    parser = cli.parser(__doc__.splitlines()[0])
    tiny_rows.add_flags(parser, "runs/roadmap")
    parser.add_argument("--rows", default="", help=f"only these rows, separated by commas; of {', '.join(ROWS)}")
    args = parser.parse_args(argv)
    rows = [name for name in args.rows.split(",") if name] or list(ROWS)
    for name in rows:
        if name not in ROWS:
            raise UserError(f"--rows: {name!r} is no row; choose from {', '.join(ROWS)}")
    # The rows may grow from one run to the next; what they are trained on may not change.
    plan = tiny_rows.begin(args, "roadmap.json")

    started, spent = time.monotonic(), Clock(plan.out / "clock.json", 6)
    spent("scenes and questions", lambda: tiny_rows.make_data(plan))
    spent("DINOv2 weights", lambda: tiny_rows.provide_dinov2(plan))
    spent("a small CLIP", lambda: tiny_rows.train_clip(plan))
    spent("frozen features", lambda: tiny_rows.prepare_row_features(plan, MAIN))
    spent(f"{len(rows)} rows", lambda: tiny_rows.train_rows(plan, rows))
    spent("evaluation", lambda: tiny_rows.evaluate_rows(plan, rows, MAIN))
    summary = _summary(plan, rows, spent.minutes())

    from spatialllm_jax.evaluation import roadmap_report

    page = roadmap_report.write(plan.out, summary)
    print(f"\n{roadmap_report.text_table(summary)}\n\nreport: {page}\n"
          f"{(time.monotonic() - started) / 60:.1f} minutes ({summary['minutes']:.1f} in all runs of this folder)")
    return summary


def _summary(plan: Plan, rows: list[str], minutes: float) -> dict[str, Any]:
    """Scores of every row that the folder holds, those of earlier runs included, in the paper's order."""
    known = [row for row in ROWS if row in rows or (plan.out / "evaluation" / row / "scores.json").exists()]
    scores = tiny_rows.scores_of(plan, known)
    summary: dict[str, Any] = {"minutes": round(minutes, 2), "seed": plan.seed, "budget": plan.budget,
                               "rows": {row: scores[row]["scores"] for row in known}}
    if MAIN in scores and "blind" in scores[MAIN]:
        summary["blind"] = scores[MAIN]["blind"]
    tiny_rows.write_summary(plan, summary)
    return summary


if __name__ == "__main__":
    cli.run(main)
