"""The report of a quickstart: one self-contained HTML file with figures, curves and sample answers."""

from __future__ import annotations

import html
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spatialllm_jax.data.audit import overlay, picture_url
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.storage import open_split
from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation import report_parts as parts
from spatialllm_jax.evaluation.report_style import SCRIPT, STYLE
from spatialllm_jax.questions.types import SPATIAL_TYPES, Question
from spatialllm_jax.scene.serialize import scene_from_json
from spatialllm_jax.whole_files import write_whole

FILE = "report.html"
SAMPLES_PER_TYPE = 12
_PICTURE_BYTES = 4_000_000   # of embedded pictures, so that the page stays below 6 MB
_UNITS = {"distance": " m", "height": " m", "taller": " m", "depth": " m", "bearing": "°", "angle": "°",
          "elevation": "°", "azimuth": "°"}
_MARGIN_UNITS = {"closer_to_camera": " m", "closer_to_object": " m", "higher": " m"}


def write(folder: Path, summary: Mapping[str, Any], rows: Mapping[str, str]) -> Path:
    """Writes `report.html` into a quickstart's folder; whatever the folder lacks is left out.

    Args:
        folder: holds data/, rows/ROW/STAGE/metrics.jsonl, evaluation/ROW/predictions.jsonl, clock.json.
        summary: "rows" {name: scores}, "blind" scores, "minutes", and "seed", "budget" where known; scores are
            those of `tally.tally`.
        rows: name -> label, baseline first; the last is the one the report is about.

    Raises:
        UserError: when the summary has no scores of these rows.
    """
    folder = Path(folder)
    shown = {name: label for name, label in rows.items() if name in summary.get("rows", {})}
    if not shown:
        raise UserError(f"{folder} has no scores of the rows {', '.join(rows)}; run the quickstart to its end first")
    columns = [(f"row{i}" if len(shown) > 1 else "row1", label, summary["rows"][name])
               for i, (name, label) in enumerate(shown.items())]
    if summary.get("blind"):
        columns.append(("blind", f"{columns[-1][1]}, pictures blanked", summary["blind"]))
    body = "".join([
        _headline(summary, columns),
        _section("scores", "Scores", _scores(columns, shown)),
        _section("roadmap", "Roadmap", _roadmap(columns)),
        _section("types", "By type of question", _by_type(columns)),
        _section("curves", "Learning curves", _curves(folder, shown)),
        _section("samples", "Sample answers", _samples(folder, shown)),
        _section("words", "In its own words", _generated(folder)),
        _section("time", "Where the time went", _time(folder)),
        _footer(summary),
    ])
    page = (f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>SpatialLLM-JAX quickstart</title>"
            f"<meta name='viewport' content='width=device-width,initial-scale=1'><style>{STYLE}</style></head>"
            f"<body><div class='wrap'>{body}</div><script>{SCRIPT}</script></body></html>\n")
    write_whole(folder / FILE, page)
    return folder / FILE


_COLOURS = 5  # row0 .. row4 of the style

Column = tuple[str, str, Mapping[str, Any]]  # colour variable, label, scores


def _section(anchor: str, title: str, content: str) -> str:
    return f"<section id='{anchor}'><h2>{title}</h2>{content}</section>" if content else ""


def _headline(summary: Mapping[str, Any], columns: Sequence[Column]) -> str:
    rows = [column for column in columns if column[0] != "blind"]
    main, others = rows[-1], [column for column in columns if column is not rows[-1]]
    overall = main[2]["overall"]
    title = f"{parts.percent(overall['acc'])} of {overall['n']:,} spatial questions right {html.escape(main[1])}"
    if others:
        title += ", " + " and ".join(f"{parts.percent(c[2]['overall']['acc'])} " + (
            "with the pictures blanked" if c[0] == "blind" else html.escape(c[1])) for c in others)
    apart = [c for c in others if c[2]["overall"]["high"] < overall["low"]]
    lead = f"Guessing gets {parts.percent(overall['chance'])}. "
    if others and len(apart) == len(others):
        lead += "Its 95 % interval lies above those of all others."
    elif others:
        lead += "Its 95 % interval overlaps with, or lies below, that of: " + ", ".join(
            html.escape(c[1]) for c in others if c not in apart) + "."
    facts = [f"{summary['minutes']:.1f} minutes of computing" if "minutes" in summary else "",
             f"budget {summary['budget']:g}" if "budget" in summary else "",
             f"seed {summary['seed']}" if "seed" in summary else ""]
    return (f"<header><p class='over'>SpatialLLM-JAX quickstart · {' · '.join(fact for fact in facts if fact)}</p>"
            f"<h1>{title}</h1><p class='lead'>{lead} All questions are about held-out scenes, "
            "answered by the likeliest option.</p><nav><a href='#scores'>Scores</a><a href='#types'>Types</a>"
            "<a href='#curves'>Curves</a><a href='#samples'>Samples</a></nav></header>")


def _scores(columns: Sequence[Column], rows: Mapping[str, str]) -> str:
    return (parts.table([(label, scores) for _, label, scores in columns])
            + "<p class='note'>Intervals are Wilson's. Chance is the expected share of uniform guessing among each "
              "question's options. The best figure of a line is coloured.</p>" + parts.paper_table(rows))


def _roadmap(columns: Sequence[Column]) -> str:
    ordered = sorted(columns, key=lambda column: column[0] != "blind")
    lines, before = [], None
    for colour, label, scores in ordered:
        small = ""
        if colour != "blind":
            if before is not None:
                small = f"{100 * (scores['overall']['acc'] - before):+.1f} points"
            before = scores["overall"]["acc"]
        lines.append((html.escape(label), small, [parts.bar(scores["overall"], colour)]))
    return ("<p class='note'>Overall accuracy, step by step as in the paper's Figure 6, with 95 % intervals.</p>"
            + parts.labelled(lines, big=True) + parts.legend({}))


def _by_type(columns: Sequence[Column]) -> str:
    types = columns[0][2]["by_type"]
    lines = [(parts.words(name), f"n = {types[name]['n']}",
              [parts.bar(scores["by_type"][name], colour) for colour, _, scores in columns
               if name in scores["by_type"]])
             for name in types]
    return parts.legend({colour: label for colour, label, _ in columns}) + parts.labelled(lines)


def _curves(folder: Path, rows: Mapping[str, str]) -> str:
    losses: list[tuple[str, str, list[tuple[float, float]]]] = []
    figures: list[str] = []
    stages: list[tuple[str, float]] = []
    for i, (row, label) in enumerate(rows.items()):
        lines, starts = _history(folder / "rows" / row)
        colour = f"row{i}" if len(rows) > 1 else "row1"
        losses.append((label, colour, [(step, line["loss"]) for step, _, line in lines]))
        stages = stages if len(stages) > len(starts) else starts
        names = dict.fromkeys(key for _, _, line in lines for key in line if key.startswith("accuracy/"))
        series = []
        for k, key in enumerate(names):
            # One line per stage and source, so that none is drawn across a stage that lacks it.
            pieces = [(key.removeprefix("accuracy/"), f"row{k % _COLOURS}",
                       [(step, line[key]) for step, at, line in lines if at == stage and key in line])
                      for stage, _ in starts]
            series += [piece for piece in pieces if piece[2]]
        keys = parts.legend({colour: name for name, colour, _ in series}, chance=False)
        figure = parts.curves(f"Training tokens predicted right, by source: {label}", series, starts)
        figures.append(figure.replace("</figure>", f"{keys}</figure>"))
    loss = parts.curves("Training loss (log scale)", losses, stages, log=True)
    keys = parts.legend({colour: label for label, colour, _ in losses}, chance=False)
    clip, _ = _history(folder / "clip", ("clip",))
    stage0 = parts.curves("Stage 0: contrastive loss of the small CLIP (log scale)",
                          [("loss", "row1", [(step, line["loss"]) for step, _, line in clip])], [], log=True)
    content = loss.replace("</figure>", f"{keys}</figure>") + "".join(figures) + stage0
    return f"<div class='grid'>{content}</div>" if content else ""


def _history(run: Path, names: Sequence[str] | None = None
             ) -> tuple[list[tuple[float, str, dict[str, Any]]], list[tuple[str, float]]]:
    """(step over all stages, stage, line of its metrics), and where each stage begins."""
    if names is None:
        config = _json(run / "config.json") or {}
        names = list(config.get("stages", {}))
    lines: list[tuple[float, str, dict[str, Any]]] = []
    starts, done = [], 0.0
    for name in names:
        file = run / name / "metrics.jsonl"
        found = [line for text in (file.read_text().splitlines() if file.exists() else []) if (line := _parsed(text))]
        if not found:
            continue
        starts.append((name, done))
        lines += [(done + line["step"], name, line) for line in found]
        done += found[-1]["step"]
    return lines, starts


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None  # a line cut off by a kill


def _json(file: Path) -> Any:
    return json.loads(file.read_text()) if file.exists() else None


def _time(folder: Path) -> str:
    clock: dict[str, float] = _json(folder / "clock.json") or {}
    total = sum(clock.values())
    if total <= 0:
        return ""
    return parts.labelled([(html.escape(name), "", [parts.share_bar(seconds / total, "row0", _duration(seconds))])
                           for name, seconds in clock.items()])


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _generated(folder: Path) -> str:
    scores = (_json(folder / "evaluation" / "generated" / "scores.json") or {}).get("scores")
    if not scores:
        return ""
    overall = scores["overall"]
    unread = overall["parse_failures"]
    lines = [(parts.words(name), f"{cell['parse_failures']} unread" if cell["parse_failures"] else "",
              [parts.bar(cell, "row1")]) for name, cell in scores["by_type"].items()]
    return (f"<p>Asked to write its answer instead of choosing one, the last row gets "
            f"{parts.percent(overall['acc'])} of {overall['n']} questions right; {unread} answers "
            f"({parts.percent(unread / max(overall['n'], 1))}) named no option or more than one, and count as wrong."
            f"</p>{parts.labelled(lines)}")


def _samples(folder: Path, rows: Mapping[str, str]) -> str:
    predictions = {row: _predictions(folder / "evaluation" / row / "predictions.jsonl") for row in rows}
    predictions = {row: found for row, found in predictions.items() if found}
    if not predictions or not (folder / "data").is_dir():
        return ""
    labels = {row: rows[row] for row in predictions}
    main = list(predictions)[-1]
    by_type: dict[str, list[tuple[ImageRecord, Question]]] = {}
    for record in open_split(folder / "data", "test"):
        for question in record.questions:
            if all(question.id in found for found in predictions.values()):
                by_type.setdefault(question.type, []).append((record, question))
    cards, spent, pictures = [], 0, set()
    by_type = {name: by_type[name] for name in sorted(by_type, key=_place)}
    chosen = [_spread(items, predictions) for items in by_type.values()]
    # Types in turn, so that a full page has cut short none of them.
    for record, question in (item for turn in itertools.zip_longest(*chosen) for item in turn if item):
        size = 0 if record.image_id in pictures else len(record.image) * 4 // 3
        if spent + size > _PICTURE_BYTES:
            break
        spent += size
        pictures.add(record.image_id)
        cards.append((question, _card(record, question, {row: predictions[row][question.id] for row in predictions},
                                      labels)))
    if not cards:
        return ""
    cards.sort(key=lambda card: _place(card[0].type))
    colours = _colours(labels)
    chips = _chips("type", {"": "all types", **{name: name.replace("_", " ") for name in by_type}})
    verdicts = {"": "right or wrong", "right": f"right {labels[main]}", "wrong": f"wrong {labels[main]}"}
    if len(predictions) > 1:
        verdicts["differ"] = "rows differ"
    return ("<p class='note'>Drawn evenly over outcomes, so wrong answers are shown more often than they occur. "
            "Thick edges bound an object's front face, the arrow is its front (dashed where the category has none); "
            "these are drawn for you, the models saw the plain picture"
            " with no more than the question's own marks. Bars are the options' likelihoods, scaled to sum to one.</p>"
            f"<div class='filters'>{chips}{_chips('verdict', verdicts)}"
            f"<div class='note'><span id='shown'></span></div></div>"
            f"{parts.legend({colours[row]: label for row, label in labels.items()}, chance=False)}"
            f"<div class='cards'>{''.join(card for _, card in cards)}</div>")


def _place(kind: str) -> int:
    """Where a type stands in the benchmark's order."""
    return [*SPATIAL_TYPES, kind].index(kind)


def _colours(rows: Mapping[str, str]) -> dict[str, str]:
    return {row: f"row{i}" if len(rows) > 1 else "row1" for i, row in enumerate(rows)}


def _chips(key: str, values: Mapping[str, str]) -> str:
    return "<div class='chips'>" + "".join(
        f"<button data-key='{key}' data-value='{html.escape(value)}' aria-pressed='{'true' if not value else 'false'}'>"
        f"{html.escape(text)}</button>" for value, text in values.items()) + "</div>"


def _predictions(file: Path) -> dict[str, dict[str, Any]]:
    if not file.exists():
        return {}
    return {line["id"]: line for text in file.read_text().splitlines() if (line := _parsed(text))}


def _spread(items: Sequence[tuple[ImageRecord, Question]], predictions: Mapping[str, Mapping[str, dict[str, Any]]]
            ) -> list[tuple[ImageRecord, Question]]:
    """Up to SAMPLES_PER_TYPE questions, all outcomes in turn, each outcome's spread over the test set."""
    outcomes: dict[tuple[bool, ...], list[tuple[ImageRecord, Question]]] = {}
    for record, question in items:
        key = tuple(found[question.id]["right"] for found in predictions.values())
        outcomes.setdefault(key, []).append((record, question))
    piles = []
    for _, pile in sorted(outcomes.items(), reverse=True):
        count = min(len(pile), SAMPLES_PER_TYPE)
        piles.append([pile[k * len(pile) // count] for k in range(count)])
    turns = [item for turn in itertools.zip_longest(*piles) for item in turn if item]
    return turns[:SAMPLES_PER_TYPE]


def _card(record: ImageRecord, question: Question, answers: Mapping[str, dict[str, Any]],
          labels: Mapping[str, str]) -> str:
    scene = scene_from_json(record.scene) if record.scene else None
    colours = _colours(labels)
    rights = [answer["right"] for answer in answers.values()]
    verdict = ("right" if rights[-1] else "wrong") + (" differ" if len(set(rights)) > 1 else "")
    shares = {row: _shares(answer.get("scores", ())) for row, answer in answers.items()}
    options = "".join(
        f"<div{' class=good' if k == question.answer_index else ''}>{html.escape(option)}"
        f"{' ✓' if k == question.answer_index else ''}</div><div class='tracks'>"
        + "".join(parts.share_bar(share[k], colours[row], f"{100 * share[k]:.0f} %")
                  for row, share in shares.items() if len(share) == len(question.options)) + "</div>"
        for k, option in enumerate(question.options))
    says = "".join(
        f"<span><i style='background:var(--{colours[row]})'></i><span>{html.escape(labels[row])}: "
        f"<b class='{'yes' if answer['right'] else 'no'}'>{html.escape(answer['raw'])} "
        f"{'✓' if answer['right'] else '✗'}</b></span></span>" for row, answer in answers.items())
    return (f"<article data-type='{html.escape(question.type)}' data-verdict='{verdict}'><div class='pic'>"
            f"<img loading='lazy' src='{picture_url(record)}' width='{record.width}' height='{record.height}' "
            f"style='height:auto' alt='{html.escape(question.text)}'>{overlay(record, question, scene)}</div>"
            f"<div class='txt'><p class='kind'>{parts.words(question.type)}</p>"
            f"<p class='ask'>{html.escape(question.text)}</p><div class='opts'>{options}</div>"
            f"<div class='says'>{says}</div><p class='num'>{_quantities(question)}</p></div></article>")


def _shares(scores: Sequence[float]) -> list[float]:
    """Softmax of log-likelihoods."""
    if not scores:
        return []
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]


def _quantities(question: Question) -> str:
    """The 3D numbers behind the answer; "first" and "second" are the last two objects the text names."""
    named = dict(zip(("first", "second"), question.regions[-2:], strict=False)) if len(question.regions) > 1 else {}
    texts = []
    for key, value in question.quantities.items():
        base, _, which = key.rpartition("_")
        name, region = (base, named.get(which)) if base and which in ("first", "second") else (key, None)
        subject = ""
        if region is not None:
            subject = f" of {region.phrase}" + (f" [{region.label}]" if question.region_style == "mark" else "")
        unit = next((unit for start, unit in _UNITS.items() if name.startswith(start)), "")
        label = "height of the taller box" if name == "taller" else name.replace("_", " ")
        texts.append(f"{label}{subject} {value:.1f}{unit}" if unit == "°" else f"{label}{subject} {value:.2f}{unit}")
    if question.margin is not None:
        unit = _MARGIN_UNITS.get(question.type, "°")
        texts.append(f"margin {question.margin:.1f}{unit}" if unit == "°" else f"margin {question.margin:.2f}{unit}")
    return html.escape(" · ".join(texts))


def _footer(summary: Mapping[str, Any]) -> str:
    flags = [f" --{key} {summary[key]:g}" for key in ("budget", "seed") if key in summary]
    return (f"<footer>Made again with <code>python -m launch.quickstart{''.join(flags)}</code>; this page alone, from "
            "what its folder holds, with <code>python -m launch.report FOLDER</code>.</footer>")
