"""Reports from what is there: `python -m launch.report runs/quickstart` writes a quickstart's page again.

`python -m launch.report LABEL=RUN ...` puts folders of launch.evaluate side by side (`runs.md`, `runs.csv`,
`runs.html`), the paper's Table 1 among them; `--compare A B` tests whether two of them differ, question by question.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launch import cli
from launch.quickstart import ROWS
from spatialllm_jax.errors import UserError


def main(argv: list[str]) -> dict[str, Any]:
    """Parses, writes report.html, returns its path."""
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", metavar="FOLDER",
                        help="folder of a quickstart, or folders of launch.evaluate, each as FOLDER or LABEL=FOLDER")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two folders of launch.evaluate, one benchmark")
    parser.add_argument("--out", help="folder for the report of several runs (default: the first of them)")
    args = parser.parse_args(argv)
    if args.compare:
        return _compare(*args.compare)
    if not args.folders:
        raise UserError("name a folder: that of a quickstart, or those of launch.evaluate")
    if len(args.folders) > 1 or "=" in args.folders[0] or _is_evaluation(Path(args.folders[0])):
        return _runs(args.folders, args.out)
    folder = Path(args.folders[0])
    from spatialllm_jax.evaluation import report

    path = report.write(folder, summary_of(folder), ROWS)
    print(f"report: {path}")
    return {"report": str(path)}


def _is_evaluation(folder: Path) -> bool:
    return (folder / "scores.json").exists() and not (folder / "quickstart.json").exists()


def _runs(folders: list[str], out: str | None) -> dict[str, Any]:
    from spatialllm_jax.evaluation import runs_report

    paths = runs_report.write(Path(out or folders[0].rpartition("=")[2]), [runs_report.load(name) for name in folders])
    print(paths["md"].read_text() + "\n".join(f"{kind}: {path}" for kind, path in paths.items()))
    return {kind: str(path) for kind, path in paths.items()}


def _compare(a: str, b: str) -> dict[str, Any]:
    from spatialllm_jax.evaluation import compare, predictions

    found = compare.compare(*(predictions.read(Path(name) / "predictions.jsonl") for name in (a, b)))
    print(compare.text_table(found, a, b))
    return {"a": a, "b": b, **found}


def summary_of(folder: Path) -> dict[str, Any]:
    """The summary of a quickstart folder, put together from its parts where it has not come to its end.

    Raises:
        UserError: when the folder is none, or holds no scores yet.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of a quickstart, such as runs/quickstart")
    if (folder / "summary.json").exists():
        return _read(folder / "summary.json")
    if not (folder / "quickstart.json").exists():
        raise UserError(f"{folder} is not the folder of a quickstart (no quickstart.json, no summary.json); "
                        "run python -m launch.quickstart first")
    scores = {row: _read(folder / "evaluation" / row / "scores.json") for row in ROWS
              if (folder / "evaluation" / row / "scores.json").exists()}
    if not scores:
        raise UserError(f"{folder} has no scores yet; run python -m launch.quickstart --out {folder} to its end")
    settings = _read(folder / "quickstart.json")
    summary: dict[str, Any] = {"rows": {row: tree["scores"] for row, tree in scores.items()},
                               **{key: settings[key] for key in ("budget", "seed") if key in settings}}
    blind = [tree["blind"] for tree in scores.values() if "blind" in tree]
    if blind:
        summary["blind"] = blind[-1]
    if (folder / "clock.json").exists():
        summary["minutes"] = sum(_read(folder / "clock.json").values()) / 60
    return summary


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}); run the quickstart again") from None


if __name__ == "__main__":
    cli.run(main)
