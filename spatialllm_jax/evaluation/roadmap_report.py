"""Table 2 and Figure 6 of the paper from trained rows: a text table and one self-contained page."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spatialllm_jax.evaluation import report_parts as parts
from spatialllm_jax.evaluation.report_style import STYLE
from spatialllm_jax.whole_files import write_whole

# Row -> what it changes against the row above, as in the paper's Figure 6.
CHANGES = {
    "llava15": "LLaVA-v1.5: CLIP, Vicuna",
    "clip_mae": "+ MAE beside CLIP",
    "clip_dinov2": "+ DINOv2 beside CLIP",
    "llama3": "+ Llama 3",
    "ft1m": "+ 3DI-Ft1M in stage 2",
    "align_ft1m": "+ 3DI-Ft1M in stage 1",
    "align_oi1m": "+ 3DI-Pb-OI1M in stage 1",
    "align_in166k": "+ 3DI-Pb-IN166K in stage 1",
    "stage0_contrastive": "+ stage 0, contrastive",
    "stage0_next_token": "+ stage 0, next token",
}
# The row that a variant is compared with, where it is not the one above.
_BASE = {"clip_dinov2": "llava15", "align_oi1m": "ft1m", "align_in166k": "ft1m", "stage0_contrastive": "align_in166k",
         "stage0_next_token": "align_in166k"}
_GROUPS = ("distance", "orientation", "relation")


def base_of(row: str, rows: Mapping[str, Any]) -> str | None:
    """The row that `row` changes one thing of, or None where that is not among `rows`."""
    names = list(CHANGES)
    base = _BASE.get(row) or (names[names.index(row) - 1] if names.index(row) else None)
    return base if base in rows else None


def text_table(summary: Mapping[str, Any]) -> str:
    """Table 2 in plain text: per cent right overall and per group, 95 % interval, gain over the base row."""
    lines = [f"{'row':20s}{'overall':>8s}{'95 % interval':>17s}{'gain':>7s}" + "".join(f"{g:>13s}" for g in _GROUPS)]
    for row, scores in summary["rows"].items():
        cell, base = scores["overall"], base_of(row, summary["rows"])
        gain = f"{100 * (cell['acc'] - summary['rows'][base]['overall']['acc']):+.1f}" if base else ""
        groups = "".join(f"{100 * scores['by_group'][g]['acc']:13.1f}" if g in scores["by_group"] else f"{'-':>13s}"
                         for g in _GROUPS)
        interval = f"[{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
        lines.append(f"{row:20s}{100 * cell['acc']:8.1f}{interval:>17s}{gain:>7s}{groups}")
    if "blind" in summary:
        cell = summary["blind"]["overall"]
        interval = f"[{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
        lines.append(f"{'(blanked pictures)':20s}{100 * cell['acc']:8.1f}{interval:>17s}")
    chance = next(iter(summary["rows"].values()))["overall"]["chance"]
    lines.append(f"{'(guessing)':20s}{100 * chance:8.1f}")
    return "\n".join(lines)


def write(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Writes `report.html`; returns its path.

    Args:
        summary: "rows" {name: scores of `tally.tally`}, "minutes", "seed", "budget", and "blind" scores where
            there are any.
    """
    rows = summary["rows"]
    body = (f"<header><p class='over'>SpatialLLM-JAX roadmap · {summary['minutes']:.0f} minutes · budget "
            f"{summary['budget']:g} · seed {summary['seed']}</p><h1>The paper's ten rows at a laptop's size</h1>"
            "<p class='lead'>Every row has the same pictures, steps and seed, and is asked the same questions about "
            "held-out rendered scenes. What is compared with the paper is the shape, not the numbers: the models are "
            "some thousand times smaller.</p></header>"
            f"<section><h2>Figure 6: the roadmap</h2>{_figure(summary)}</section>"
            f"<section><h2>Table 2</h2>{_table(rows)}</section>"
            f"<section><h2>By type of question</h2>{parts.table(list(_labels(rows).items()))}</section>")
    page = ("<!doctype html><html lang='en'><head><meta charset='utf-8'><title>SpatialLLM-JAX roadmap</title>"
            f"<meta name='viewport' content='width=device-width,initial-scale=1'><style>{STYLE}</style></head>"
            f"<body><div class='wrap'>{body}</div></body></html>\n")
    write_whole(folder / "report.html", page)
    return folder / "report.html"


def _labels(rows: Mapping[str, Any]) -> dict[str, Any]:
    return {row.replace("_", " "): scores for row, scores in rows.items()}


def _figure(summary: Mapping[str, Any]) -> str:
    rows = summary["rows"]
    lines = []
    for row, scores in rows.items():
        base = base_of(row, rows)
        small = ""
        if base:
            gain = 100 * (scores["overall"]["acc"] - rows[base]["overall"]["acc"])
            small = f"{gain:+.1f} against {html.escape(base)}"
            if row in parts.PAPER and base in parts.PAPER:
                small += f"; paper {parts.PAPER[row][0] - parts.PAPER[base][0]:+.1f}"
        colour = "row1" if row == "align_in166k" else "row0"
        lines.append((html.escape(CHANGES[row]), small, [parts.bar(scores["overall"], colour)]))
    if "blind" in summary:
        lines.append(("align_in166k, pictures blanked", "", [parts.bar(summary["blind"]["overall"], "blind")]))
    return ("<p class='note'>Overall accuracy with 95 % intervals; under each name the gain over the row it changes "
            "one thing of, here and in the paper.</p>" + parts.labelled(lines, big=True) + parts.legend({}))


def _table(rows: Mapping[str, Any]) -> str:
    lines = []
    for row, scores in rows.items():
        cells = [scores["overall"], *(scores["by_group"].get(group) for group in _GROUPS)]
        ours = "".join("<td></td>" if cell is None else
                       f"<td>{100 * cell['acc']:.1f}<span class='ci'>{100 * cell['low']:.1f}–{100 * cell['high']:.1f}"
                       "</span></td>" for cell in cells)
        paper = "".join(f"<td class='dim'>{value:.1f}</td>" for value in parts.PAPER[row])
        lines.append(f"<tr><td>{html.escape(row)}</td>{ours}{paper}</tr>")
    heads = ("average", "distance", "orientation", "spatial relation")
    head = "".join(f"<th>{name}</th>" for name in heads) + "".join(f"<th>paper: {name}</th>" for name in heads)
    return (f"<div class='scroll'><table><thead><tr><th>row</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
            "</table></div><p class='note'>The paper's columns: Table 2, full size, 1,323 questions about Omni3D's "
            "photographs, %.</p>")
