"""The report of `launch.real`: loss, what the model says about scenes and photographs, and its scores."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spatialllm_jax.data.audit import picture_url
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.storage import open_split
from spatialllm_jax.evaluation import report_parts as parts
from spatialllm_jax.evaluation.report_style import STYLE
from spatialllm_jax.whole_files import write_whole

FILE = "report.html"
SCENES_SHOWN = 24


def write(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Writes `report.html` into the folder of a finished run; returns its path.

    Args:
        folder: holds run/align/metrics.jsonl, answers.json, scenes/, photos/NAME/.
        summary: as `launch.real` writes it.
    """
    answers = json.loads((folder / "answers.json").read_text())
    lines = [json.loads(line) for line in (folder / "run" / "align" / "metrics.jsonl").read_text().splitlines()]
    scenes = _by_id([folder / "scenes"])
    photos = _by_id([folder / "photos" / name for name in summary["photographs"]])
    said = summary["naming"]["said"]
    body = "".join([
        f"<header><p class='over'>SpatialLLM-JAX, real weights · {summary['minutes']:.1f} minutes · seed "
        f"{summary['seed']}</p><h1>Of {said['n']} things that SmolLM2-135M names in held-out scenes, "
        f"{parts.percent(said['acc'])} are there</h1><p class='lead'>In other scenes of the same setting "
        f"they would be there {parts.percent(said['chance'])} of the time. Only the connector between a "
        f"ViT-S/14 of DINOv2 architecture, a small CLIP branch ({_clip(summary['clip'])}) and the language "
        f"model was trained, for {summary['steps']} steps on {summary['scenes']} rendered scenes.</p></header>",
        "<h2>Learning</h2>", _curves(lines),
        "<h2>Naming what is there</h2>", _naming(summary["naming"]),
        "<h2>Spatial questions</h2><p class='note'>SpatialVQA by the likeliest option. Stage 1 saw captions and "
        "probing questions, none of these types; an interval that holds the blanked score or chance shows no skill."
        "</p>",
        *(f"<h3>{_title(name)}</h3>" + parts.table([("pictures", scores), ("blanked", summary["blind"][name])])
          for name, scores in summary["scores"].items()),
        "<h2>Held-out scenes, in its own words</h2>", _cards(answers["scenes"][:SCENES_SHOWN], scenes),
        "<h2>Photographs, in its own words</h2><p class='note'>Stage 1 saw rendered furniture, vehicles and animals "
        "only.</p>" if answers["photographs"] else "", _cards(answers["photographs"], photos),
        f"<footer>Made again with <code>python -m launch.real --steps {summary['steps']} --scenes {summary['scenes']} "
        f"--seed {summary['seed']}</code>. Meshes: Sweet Home 3D's libraries, credits in <code>CREDITS.md</code>."
        "</footer>"])
    page = (f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>SpatialLLM-JAX, real weights</title>"
            f"<meta name='viewport' content='width=device-width,initial-scale=1'><style>{STYLE}</style></head>"
            f"<body><div class='wrap'>{body}</div></body></html>\n")
    write_whole(folder / FILE, page)
    return folder / FILE


def _by_id(folders: Sequence[Path]) -> dict[str, ImageRecord]:
    return {record.image_id: record for folder in folders for record in open_split(folder, "test")}


def _clip(name: str) -> str:
    return "random weights" if name == "random" else f"weights of {html.escape(name)}"


def _title(name: str) -> str:
    return {"scenes": "Held-out rendered scenes (objects named)",
            "real3d": "Photographs of real3d.json (marks drawn)",
            "kitti": "Photographs of KITTI (marks drawn)"}.get(name, html.escape(name))


def _curves(lines: Sequence[Mapping[str, Any]]) -> str:
    keys = [key for key in dict.fromkeys(key for line in lines for key in line) if key.startswith("loss/")]
    series = [("all", "row1", [(line["step"], line["loss"]) for line in lines])] + [
        (key.removeprefix("loss/"), f"row{(2 + index) % 4}",
         [(line["step"], line[key]) for line in lines if key in line])
        for index, key in enumerate(keys)]
    legend = parts.legend({colour: label for label, colour, _ in series}, chance=False)
    figure = parts.curves("Training loss per token (log scale)", series, [], log=True)
    return f"<div class='grid'>{figure.replace('</figure>', f'{legend}</figure>')}</div>"


def _naming(naming: Mapping[str, Any]) -> str:
    rows = {"said": ("named things that are in the picture", "chance: in other pictures of the setting"),
            "found": ("things in the picture that are named", "chance: by other captions of the setting")}
    return parts.labelled([(label, f"{small}; n = {naming[key]['n']}", [parts.bar(naming[key], "row1")])
                           for key, (label, small) in rows.items()])


def _cards(entries: Sequence[Mapping[str, Any]], records: Mapping[str, ImageRecord]) -> str:
    cards = []
    for entry in entries:
        record = records[entry["image"]]
        lines = [f"<p><b>{html.escape(entry['caption'])}</b></p>"]
        if entry["reference"]:
            lines.append(f"<p class='num'>written by the renderer: {html.escape(entry['reference'])}</p>")
        elif entry["named"]:
            lines.append(f"<p class='num'>annotated: {html.escape(', '.join(entry['named']))}</p>")
        if "question" in entry:
            lines.append(f"<p class='ask'>{html.escape(entry['question'])}</p><p><b>{html.escape(entry['answer'])}</b>"
                         f"</p><p class='num'>from the scene: {html.escape(entry['expected'])}</p>")
        cards.append(f"<article><div class='pic'><img loading='lazy' src='{picture_url(record)}' "
                     f"width='{record.width}' height='{record.height}' style='height:auto' "
                     f"alt='{html.escape(entry['image'])}'></div>"
                     f"<div class='txt'>{''.join(lines)}</div></article>")
    return f"<div class='cards'>{''.join(cards)}</div>" if cards else ""
