"""Several evaluated runs side by side: the paper's Table 1 with what was measured here, as Markdown, CSV and a page."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation.report_parts import PAPER
from spatialllm_jax.evaluation.report_style import STYLE
from spatialllm_jax.whole_files import write_whole

# The paper's Table 1: average, 3D distance, 3D orientation, 3D spatial relation (%), on its own SpatialVQA.
TABLE1 = {
    "GPT-4o": (54.0, 59.4, 52.4, 50.8), "GPT-4o Mini": (45.4, 46.9, 39.3, 48.5),
    "Claude 3.5 Sonnet": (49.3, 50.8, 44.5, 51.5), "LLaVA-v1.5-7B": (47.7, 50.6, 46.4, 46.2),
    "LLaVA-NeXT-8B": (50.6, 63.5, 49.2, 41.5), "Cambrian-8B": (51.7, 59.8, 46.4, 48.9),
    "SpatialVLM-13B": (52.2, 64.3, 48.5, 45.8), "SpatialLLM": (62.7, 86.3, 52.9, 50.8),
}
_GROUPS = {"Avg.": "", "3D Dist.": "distance", "3D Orient.": "orientation", "3D Spatial Rel.": "relation"}
_NONE = [""] * len(_GROUPS)
_KEYS = ("n", "acc", "low", "high", "low_clustered", "high_clustered", "clusters", "chance", "parse_failures")

Run = Mapping[str, Any]     # what launch.evaluate writes to scores.json
Table = tuple[list[str], list[list[str]]]   # head, rows


def load(argument: str) -> tuple[str, Run]:
    """(label, scores) of "LABEL=FOLDER" or FOLDER, whose own name is then the label.

    Raises:
        UserError: the folder holds no scores.
    """
    label, _, name = argument.rpartition("=")
    folder = Path(name)
    try:
        run = json.loads((folder / "scores.json").read_text())
        run["scores"]["overall"]["acc"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"{folder} has no readable scores.json; run launch.evaluate --out {folder} first") from None
    return label or (folder.name or str(folder)), run


def write(folder: Path, runs: Sequence[tuple[str, Run]]) -> dict[str, Path]:
    """Writes `runs.md`, `runs.csv` and `runs.html`; returns their paths by kind."""
    names = dict.fromkeys(run.get("benchmark", "spatial_vqa") for _, run in runs)
    tables = []
    for name in names:
        part = [(label, run) for label, run in runs if run.get("benchmark", "spatial_vqa") == name]
        title = part[0][1].get("title", name)
        if name == "spatial_vqa":
            tables.append((f"{title}: the paper's Table 1", *table1(part)))
        tables.append((f"{title}: all scores", *all_scores(part)))
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"runs.{kind}" for kind in ("md", "csv", "html")}
    write_whole(paths["md"], _markdown(tables))
    write_whole(paths["csv"], _csv(runs))
    write_whole(paths["html"], _page(tables))
    return paths


def table1(runs: Sequence[tuple[str, Run]]) -> Table:
    """Systems down, the four columns across: measured here with 95 % intervals, and as the paper reports them.

    A run whose label is one of the paper's systems, or one of its Table 2's rows, stands in that line.
    """
    measured = {label.casefold(): (label, run) for label, run in runs}
    head = ["system", "run here", *_GROUPS, *(f"paper: {name}" for name in _GROUPS)]
    rows = []
    for system, paper in TABLE1.items():
        label, run = measured.pop(system.casefold(), (system, None))
        rows.append([label, "✓" if run else "", *_ours(run), *(f"{value:.1f}" for value in paper)])
    for label, run in measured.values():
        known = PAPER.get(label)    # a row of Table 2
        rows.append([label, "✓", *_ours(run), *([f"{value:.1f}" for value in known] if known else _NONE)])
    for label, run in runs:
        if "blind" in run:
            rows.append([f"{label}, pictures blanked", "✓", *_ours({"scores": run["blind"]}), *_NONE])
    cells = [_tree(runs[0][1], group) for group in _GROUPS.values()]
    rows.append(["guessing", "", *("" if cell is None else f"{100 * cell['chance']:.1f}" for cell in cells), *_NONE])
    return head, rows


def _tree(run: Run, group: str) -> Mapping[str, Any] | None:
    scores = run["scores"]
    return scores["by_group"].get(group) if group else scores["overall"]


def _ours(run: Run | None) -> list[str]:
    if run is None:
        return _NONE
    cells = [_tree(run, group) for group in _GROUPS.values()]
    return ["" if cell is None else _share(cell) for cell in cells]


def _share(cell: Mapping[str, Any]) -> str:
    """Per cent and its interval, the one clustered by picture where there is one."""
    low, high = cell.get("low_clustered", cell["low"]), cell.get("high_clustered", cell["high"])
    return f"{100 * cell['acc']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def all_scores(runs: Sequence[tuple[str, Run]]) -> Table:
    """Every figure of one benchmark, a column per run."""
    names = list(dict.fromkeys(row for _, run in runs for row, _ in _figures(run)))
    found = [dict(_figures(run)) for _, run in runs]
    return (["", *(label for label, _ in runs)],
            [[name, *(figures.get(name, "") for figures in found)] for name in names])


def _figures(run: Run) -> list[tuple[str, str]]:
    tree = run["scores"]
    rows = [(name, "-" if value is None else f"{100 * value:.1f}") for name, value in tree.get("headline", {}).items()]
    rows += [("overall (micro)", _share(tree["overall"])), ("macro over types", f"{100 * tree['macro']:.1f}"),
             ("questions", f"{tree['overall']['n']}"), ("guessing", f"{100 * tree['overall']['chance']:.1f}"),
             ("unread answers", f"{tree['overall']['parse_failures']}"),
             ("skipped rows", f"{tree.get('skipped', {}).get('n', 0)}"),
             ("unanswered", f"{tree.get('unanswered', {}).get('n', 0)}")]
    if "blind" in run:
        rows.append(("pictures blanked", _share(run["blind"]["overall"])))
    rows += [(f"{name.replace('_', ' + ')} (all variants right)", _share(variant["overall"]))
             for name, variant in tree.get("variants", {}).items()]
    if options := tree.get("bias", {}).get("options"):
        rows.append(("chosen / right", ", ".join(f"{name} {said}/{right}" for name, (said, right) in options.items())))
    if "judge" in run:
        judge = run["judge"]
        rows.append((f"with judge {judge['judge']}", f"{100 * judge['overall']:.1f} (read {judge['read']} of "
                                                      f"{judge['asked']} unread)"))
    if "usage" in run:
        usage = run["usage"]
        rows.append(("tokens in / out", f"{usage['input_tokens']} / {usage['output_tokens']}"))
        rows += [("dollars", f"{usage['dollars']}")] if "dollars" in usage else []
    rows += [(f"group {name}", _share(cell)) for name, cell in tree["by_group"].items() if len(tree["by_group"]) > 1]
    rows += [(f"type {name}", _share(cell)) for name, cell in tree["by_type"].items()]
    return rows


def _markdown(tables: Sequence[tuple[str, list[str], list[list[str]]]]) -> str:
    parts = []
    for title, head, rows in tables:
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
                 for row in (head, ["---"] * len(head), *rows)]
        parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join([*parts, _NOTE, ""])


_NOTE = ("% right, 95 % intervals (Wilson's, for as many questions as those on shared pictures are worth). "
         "✓: measured here; the paper's figures are on its own SpatialVQA, which is not public.")


def _csv(runs: Sequence[tuple[str, Run]]) -> str:
    """One line per cell: run, benchmark, pass (scores, blind), breakdown, name, figures."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "benchmark", "pass", "breakdown", "name", *_KEYS])
    for label, run in runs:
        for name in ("scores", "blind"):
            tree = run.get(name)
            if not tree:
                continue
            cells = [("overall", "", tree["overall"])]
            cells += [(kind, key, cell) for kind in ("by_group", "by_type") for key, cell in tree[kind].items()]
            cells += [("variants", key, variant["overall"]) for key, variant in tree.get("variants", {}).items()]
            for kind, key, cell in cells:
                writer.writerow([label, run.get("benchmark", "spatial_vqa"), name, kind, key,
                                 *(cell.get(field, "") for field in _KEYS)])
    return text.getvalue()


def _page(tables: Sequence[tuple[str, list[str], list[list[str]]]]) -> str:
    body = ""
    for title, head, rows in tables:
        lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        heads = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        body += (f"<section><h2>{html.escape(title)}</h2><div class='scroll'><table><thead><tr>{heads}</tr></thead>"
                 f"<tbody>{lines}</tbody></table></div></section>")
    return ("<!doctype html><html lang='en'><head><meta charset='utf-8'><title>SpatialLLM-JAX: evaluated runs</title>"
            f"<meta name='viewport' content='width=device-width,initial-scale=1'><style>{STYLE}</style></head>"
            f"<body><div class='wrap'><header><h1>Evaluated runs</h1></header>{body}<p class='note'>{_NOTE}</p></div>"
            "</body></html>\n")
