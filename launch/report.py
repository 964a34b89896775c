"""Writes the report of a quickstart folder again, from what is there: `python -m launch.report runs/quickstart`."""

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
    parser.add_argument("folder", help="folder of a quickstart, e.g. runs/quickstart")
    folder = Path(parser.parse_args(argv).folder)
    from spatialllm_jax.evaluation import report

    path = report.write(folder, summary_of(folder), ROWS)
    print(f"report: {path}")
    return {"report": str(path)}


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
