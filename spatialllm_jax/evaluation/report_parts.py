"""Pieces of the report page: bars with intervals, the table, learning curves. Strings of HTML and SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from spatialllm_jax.questions.types import SPATIAL_TYPES

Scores = Mapping[str, Any]  # what `tally.tally` returns
GROUP_NAMES = {"distance": "Distance", "orientation": "Orientation", "relation": "Spatial relation"}
# The paper's Table 2: average, distance, orientation, spatial relation (%), by name of the row.
PAPER = {
    "llava15": (47.7, 50.6, 46.4, 46.2), "clip_mae": (47.9, 52.2, 45.7, 46.1), "clip_dinov2": (48.0, 51.9, 46.9, 45.6),
    "llama3": (49.0, 56.3, 51.7, 41.5), "ft1m": (59.7, 85.2, 52.1, 44.8), "align_ft1m": (57.5, 80.8, 46.9, 46.4),
    "align_oi1m": (60.0, 82.1, 46.9, 51.6), "align_in166k": (62.7, 86.3, 52.9, 51.0),
    "stage0_contrastive": (60.3, 85.0, 50.5, 47.5), "stage0_next_token": (62.6, 85.2, 52.9, 51.5),
}


def words(name: str) -> str:
    """A type's name as text."""
    return html.escape(name.replace("_", " "))


def percent(share: float) -> str:
    """"71.3 %", unbroken at line ends."""
    return f"{100 * share:.1f}\u202f%"


def legend(names: Mapping[str, str], chance: bool = True) -> str:
    """Colour keys: CSS variable -> label."""
    items = "".join(f"<span><i style='background:var(--{key})'></i>{html.escape(label)}</span>"
                    for key, label in names.items())
    return f"<div class='key'>{items}{'<span><i class=tick></i>chance</span>' if chance else ''}</div>"


def bar(cell: Mapping[str, float], colour: str, note: str = "") -> str:
    """A bar of an accuracy with its 95 % interval and the chance line."""
    return (f"<div class='track' title='{percent(cell['acc'])}, 95 % interval {percent(cell['low'])} to "
            f"{percent(cell['high'])}, n = {cell['n']}'>"
            f"<b style='width:{100 * cell['acc']:.2f}%;background:var(--{colour})'></b>"
            f"<em style='left:{100 * cell['chance']:.2f}%'></em>"
            f"<u style='left:{100 * cell['low']:.2f}%;width:{100 * (cell['high'] - cell['low']):.2f}%'></u>"
            f"<s>{percent(cell['acc'])}{note}</s></div>")


def share_bar(share: float, colour: str, text: str) -> str:
    """A plain bar of a share in [0, 1]."""
    return (f"<div class='track'><b style='width:{100 * share:.1f}%;background:var(--{colour})'></b>"
            f"<s>{html.escape(text)}</s></div>")


def labelled(rows: Sequence[tuple[str, str, Sequence[str]]], big: bool = False) -> str:
    """Bars beside their names: (name, small print, bars)."""
    parts = "".join(
        f"<div class='name'>{name}{f'<small>{small}</small>' if small else ''}</div>"
        f"<div class='tracks'>{''.join(bars)}</div>" for name, small, bars in rows)
    return f"<div class='bars{' big' if big else ''}'>{parts}</div>"


def table(columns: Sequence[tuple[str, Scores]]) -> str:
    """Overall, macro, and the types under their groups; one column per row of the roadmap."""
    first = columns[0][1]

    def line(kind: str, name: str, cells: Sequence[Mapping[str, float] | None]) -> str:
        known = next(cell for cell in cells if cell)
        best = max((cell["acc"] for cell in cells if cell), default=0.0)
        tail = "".join("<td></td>" if cell is None else
                       f"<td><span{' class=best' if cell['acc'] == best else ''}>{100 * cell['acc']:.1f}</span>"
                       f"<span class='ci'>{100 * cell['low']:.1f}–{100 * cell['high']:.1f}</span></td>"
                       for cell in cells)
        return (f"<tr class='{kind}'><td>{name}</td><td class='dim'>{known['n']}</td>"
                f"<td class='dim'>{100 * known['chance']:.1f}</td>{tail}</tr>")

    lines = [line("sum", "Overall", [scores["overall"] for _, scores in columns])]
    lines.append("<tr class='sum'><td>Mean over types</td><td></td><td></td>" + "".join(
        f"<td>{100 * scores['macro']:.1f}<span class='ci' style='visibility:hidden'>00.0–00.0</span></td>"
        for _, scores in columns) + "</tr>")
    groups = list(dict.fromkeys(SPATIAL_TYPES.get(name, "other") for name in first["by_type"]))
    for group in groups:
        if any(group in scores.get("by_group", {}) for _, scores in columns):
            lines.append(line("sum group", GROUP_NAMES.get(group, group),
                              [scores.get("by_group", {}).get(group) for _, scores in columns]))
        lines += [line("type", words(name), [scores["by_type"].get(name) for _, scores in columns])
                  for name in first["by_type"] if SPATIAL_TYPES.get(name, "other") == group]
    head = "".join(f"<th>{html.escape(label)}</th>" for label, _ in columns)
    return (f"<div class='scroll'><table><thead><tr><th>% right, 95 % interval</th><th>n</th><th>chance</th>{head}</tr>"
            f"</thead><tbody>{''.join(lines)}</tbody></table></div>")


def paper_table(rows: Mapping[str, str]) -> str:
    """The paper's own figures for the same rows, or "" when it has none."""
    known = [(label, PAPER[name]) for name, label in rows.items() if name in PAPER]
    if not known:
        return ""
    lines = "".join(
        f"<tr><td>{html.escape(label)}</td>{''.join(f'<td>{value:.1f}</td>' for value in values)}</tr>"
        for label, values in known)
    return ("<p class='note'>For comparison of shape only: <b>full size, the paper's test</b> (SpatialLLM, Table 2: "
            "CLIP-L and DINOv2-L, Llama-3-8B, 1,323 questions on Omni3D photographs, %). The models here are some "
            "thousand times smaller and see rendered scenes; the numbers are not comparable one to one.</p>"
            "<div class='scroll'><table><thead><tr><th>paper, full size</th><th>average</th><th>distance</th>"
            f"<th>orientation</th><th>spatial relation</th></tr></thead><tbody>{lines}</tbody></table></div>")


_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 400.0, 210.0, 40.0, 30.0, 18.0


def curves(title: str, lines: Sequence[tuple[str, str, Sequence[tuple[float, float]]]],
           stages: Sequence[tuple[str, float]], *, log: bool = False, dashes: Mapping[str, str] | None = None) -> str:
    """A figure of (label, colour variable, [(step, value)]) lines; stages are (name, first step).

    Args:
        log: logarithmic y axis (losses); else the axis is a share from 0 to 1.
        dashes: label -> stroke-dasharray.
    """
    points = [(x, y) for _, _, line in lines for x, y in line if math.isfinite(y) and (y > 0 or not log)]
    if not points:
        return ""
    last = max(x for x, _ in points) or 1.0
    low, high = (min(y for _, y in points), max(y for _, y in points)) if log else (0.0, 1.0)
    if log and high / low < 1.05:
        low, high = low / 1.05, high * 1.05

    def across(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 8) * x / last

    def up(y: float) -> float:
        share = math.log(y / low) / math.log(high / low) if log else (y - low) / (high - low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * share

    parts = []
    for value in _ticks(low, high) if log else (0.0, 0.25, 0.5, 0.75, 1.0):
        text = f"{value:.3g}" if log else f"{100 * value:.0f} %"
        parts.append(f"<line class='axis' x1='{_LEFT}' x2='{_WIDTH - 8}' y1='{up(value):.1f}' y2='{up(value):.1f}'/>"
                     f"<text x='{_LEFT - 6}' y='{up(value) + 4:.1f}' text-anchor='end'>{text}</text>")
    for name, start in stages:
        if start > 0:
            parts.append(f"<line class='stage' x1='{across(start):.1f}' x2='{across(start):.1f}' y1='{_TOP - 6}' "
                         f"y2='{_HEIGHT - _BOTTOM}'/>")
        parts.append(f"<text x='{across(start) + 4:.1f}' y='{_TOP - 7}'>{html.escape(name)}</text>")
    parts.append(f"<text x='{_WIDTH - 8}' y='{_HEIGHT - 8}' text-anchor='end'>{last:,.0f} steps</text>"
                 f"<text x='{_LEFT}' y='{_HEIGHT - 8}'>0</text>")
    for label, colour, line in lines:
        spots = [(across(x), up(y)) for x, y in line if math.isfinite(y) and (y > 0 or not log)]
        if spots:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
            dash = f" stroke-dasharray='{dashes[label]}'" if dashes and label in dashes else ""
            parts.append(f"<path d='{path}' stroke='var(--{colour})'{dash}><title>{html.escape(label)}</title></path>")
    return (f"<figure><figcaption>{html.escape(title)}</figcaption><svg class='plot' role='img' "
            f"aria-label='{html.escape(title)}' viewBox='0 0 {_WIDTH:g} {_HEIGHT:g}'>{''.join(parts)}</svg></figure>")


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the range, at most six."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0 ** p for p in powers for m in (1, 2, 5) if low <= m * 10.0 ** p <= high]
    return ticks[::-(-len(ticks) // 6)] if ticks else [low, high]
