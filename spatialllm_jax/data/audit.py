"""One self-contained HTML page to judge questions by eye: pictures, boxes, fronts, numbers, histograms."""

from __future__ import annotations

import base64
import html
import io
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from spatialllm_jax.data.images import REGION_COLOURS, decode
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.questions.balance import answer_key
from spatialllm_jax.questions.recheck import recheck
from spatialllm_jax.questions.types import Question
from spatialllm_jax.scene.geometry import BOX_EDGES, box_corners, clip_segment, project, valid_box
from spatialllm_jax.scene.serialize import scene_from_json
from spatialllm_jax.scene.types import Object3D, Scene

_WIDTH = 720
_PLAIN = (210, 210, 210)


def audit_page(title: str, chosen: Sequence[tuple[ImageRecord, Question]], card_text: str = "") -> str:
    """The page for questions in the order given; each record's picture is embedded once."""
    pictures: dict[str, str] = {}
    scenes: dict[str, Scene | None] = {}
    cards, kinds, sources = [], Counter[str](), Counter[str]()
    problems = 0
    for record, question in chosen:
        if record.image_id not in pictures:
            pictures[record.image_id] = picture_url(record)
            scenes[record.image_id] = scene_from_json(record.scene) if record.scene else None
        scene = scenes[record.image_id]
        problem = recheck(question, scene)
        problems += problem is not None
        kinds[question.type] += 1
        sources[question.source] += 1
        cards.append(_card(record, question, scene, problem))
    options, origins = _choices(kinds), _choices(sources)
    verdict = "every answer agrees with its numbers"
    if problems:
        verdict = f"{problems} answers disagree with their numbers"
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>{_STYLE}</style>
<header><h1>{html.escape(title)}</h1>
<p>{len(chosen)} questions on {len(pictures)} images; {verdict}.
Boxes: thick edges bound the front face, the arrow is the front (dashed where the category has no semantic front).</p>
<label>Type <select id="type"><option value="">all</option>{options}</select></label>
<label>Source <select id="source"><option value="">all</option>{origins}</select></label>
<label>Text <input id="find" placeholder="part of the question or answer"></label>
<label><input type="checkbox" id="bad"> only disagreements</label> <span id="shown"></span></header>
<details open><summary>Histograms</summary><div class="charts">{_charts(chosen, scenes)}</div></details>
<details><summary>Dataset card</summary><pre>{html.escape(card_text)}</pre></details>
<main>{"".join(cards)}</main>
<script>const pictures = {json.dumps(pictures)};{_SCRIPT}</script></html>
"""


def _choices(counts: Counter[str]) -> str:
    return "".join(
        f"<option value='{html.escape(key)}'>{html.escape(key)} ({number})</option>"
        for key, number in sorted(counts.items())
    )


def write_page(path: Path, page: str) -> None:
    """Writes the page in one go: a temporary file, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page)
    partial.replace(path)


def picture_url(record: ImageRecord) -> str:
    """The record's picture as a data URL, at most 720 pixels wide."""
    image = Image.fromarray(decode(record.image, record.image_id))
    if image.width > _WIDTH:
        image = image.resize((_WIDTH, round(image.height * _WIDTH / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _card(record: ImageRecord, question: Question, scene: Scene | None, problem: str | None) -> str:
    numbers = ", ".join(f"{k} {v:.2f}" for k, v in question.quantities.items())
    if question.margin is not None:
        numbers += f" · margin {question.margin:.2f}"
    turns = "".join(
        f"<p class='q'>{html.escape(user).replace(chr(10), '<br>')}</p><p class='a'>{html.escape(assistant)}</p>"
        for user, assistant in question.turns
    )
    choices = "".join(
        f"<li{' class=right' if k == question.answer_index else ''}>{html.escape(option)}</li>"
        for k, option in enumerate(question.options)
    )
    flag = f"<p class='bad'>{html.escape(problem)}</p>" if problem else ""
    kind, source, key = (html.escape(v) for v in (question.type, question.source, question.id))
    drawing = overlay(record, question, scene)
    return (
        f"<article data-type='{kind}' data-source='{source}'{' data-bad=1' if problem else ''}>"
        f"<div class='pic'><img data-id='{html.escape(record.image_id)}' alt=''>{drawing}</div>"
        f"<div class='txt'><p class='meta'>{kind} · {source} · {key}</p>{turns}{flag}"
        f"<ul>{choices}</ul><p class='num'>{html.escape(numbers)}</p></div></article>"
    )


def overlay(record: ImageRecord, question: Question, scene: Scene | None) -> str:
    """SVG in the picture's own pixels: regions, projected boxes and fronts."""
    unit = record.width / _WIDTH * 1.6
    parts = []
    pointed: dict[int, tuple[str, tuple[int, int, int]]] = {}
    sides = np.array([record.width, record.height] * 2, float)
    for k, region in enumerate(question.regions):
        colour = REGION_COLOURS[k % len(REGION_COLOURS)]
        x1, y1, x2, y2 = np.array(region.bbox) * sides
        parts.append(
            f"<rect x='{x1:.1f}' y='{y1:.1f}' width='{x2 - x1:.1f}' height='{y2 - y1:.1f}' fill='none' "
            f"stroke='rgb{colour}' stroke-width='{unit:.2f}' stroke-dasharray='{4 * unit:.1f} {3 * unit:.1f}'/>"
        )
        tag = html.escape(region.label if question.region_style == "mark" else region.phrase)
        parts.append(
            f"<text x='{x1 + 2 * unit:.1f}' y='{max(y1 - 3 * unit, 13 * unit):.1f}' font-size='{14 * unit:.1f}' "
            f"fill='rgb{colour}' stroke='black' stroke-width='{3 * unit:.1f}' paint-order='stroke'>{tag}</text>"
        )
        if scene is not None:
            gaps = [float(np.abs(o.bbox2d - np.array(region.bbox) * sides).max()) for o in scene.objects]
            if gaps and min(gaps) < 2:
                pointed[int(np.argmin(gaps))] = (region.label, colour)
    if scene is not None:
        for i, obj in enumerate(scene.objects):
            if valid_box(obj.box) is None and (i in pointed or not pointed):
                colour = pointed[i][1] if i in pointed else _PLAIN
                parts.append(_box_svg(obj, scene, colour, unit))
    view = f"0 0 {record.width} {record.height}"
    return f"<svg viewBox='{view}' preserveAspectRatio='none'>{''.join(parts)}</svg>"


def _box_svg(obj: Object3D, scene: Scene, colour: tuple[int, int, int], unit: float) -> str:
    corners = box_corners(obj.box)
    intrinsics = scene.camera.intrinsics
    lines = []

    def line(a: np.ndarray, b: np.ndarray, width: float, extra: str = "") -> np.ndarray | None:
        segment = clip_segment(a, b)
        if segment is None:
            return None
        (x1, y1), (x2, y2) = project(np.array(segment), intrinsics)
        lines.append(f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='rgb{colour}' "
                     f"stroke-width='{width * unit:.2f}' {extra}/>")  # fmt: skip
        return np.array([x1, y1, x2, y2])

    for k, (i, j) in enumerate(BOX_EDGES):
        line(corners[i], corners[j], 2.2 if k < 4 else 0.9)
    front = obj.box.rotation[:, 0]
    length = obj.box.size[0] / 2 + max(0.35 * float(obj.box.size.max()), 0.2)
    dashed = "" if obj.has_front else f"stroke-dasharray='{3 * unit:.1f}'"
    ends = line(obj.box.center, obj.box.center + front * length, 2.6, dashed)
    if ends is not None:
        lines.append(f"<circle cx='{ends[2]:.1f}' cy='{ends[3]:.1f}' r='{4 * unit:.1f}' fill='rgb{colour}' "
                     f"stroke='black' stroke-width='{0.8 * unit:.2f}'/>")  # fmt: skip
    return "".join(lines)


def _charts(chosen: Sequence[tuple[ImageRecord, Question]], scenes: dict[str, Scene | None]) -> str:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    margins: dict[str, list[float]] = defaultdict(list)
    for _, question in chosen:
        if question.answer_index is not None:
            answers[question.type][answer_key(question)] += 1
        if question.margin is not None:
            margins[question.type].append(question.margin)
    found = [scene for scene in scenes.values() if scene is not None]
    depths = [float(o.box.center[2]) for scene in found for o in scene.objects]
    charts = [_bars(f"answers: {kind}", dict(sorted(counts.items()))) for kind, counts in sorted(answers.items())]
    charts.append(_histogram("depth of all objects (z)", depths))
    charts += [_histogram(f"margin: {kind}", values) for kind, values in sorted(margins.items())]
    return "".join(charts)


def _histogram(title: str, values: Sequence[float], bins: int = 12) -> str:
    if not values:
        return ""
    counts, edges = np.histogram(values, bins=bins)
    return _bars(title, {f"{edges[k]:.1f}": int(n) for k, n in enumerate(counts)})


def _bars(title: str, counts: dict[str, int]) -> str:
    if len(counts) > 16:
        counts = dict(sorted(counts.items(), key=lambda item: -item[1])[:16])
    top, width, step = max(counts.values(), default=1) or 1, 250, 250 / max(len(counts), 1)
    bars = "".join(
        f"<rect x='{k * step + 1:.1f}' y='{90 - 70 * n / top:.1f}' width='{step - 2:.1f}' height='{70 * n / top:.1f}'/>"
        f"<text x='{(k + 0.5) * step:.1f}' y='{86 - 70 * n / top:.1f}' class='n'>{n}</text>"
        f"<text x='{(k + 0.5) * step:.1f}' y='100' class='l'>{html.escape(str(label))[:9]}</text>"
        for k, (label, n) in enumerate(counts.items())
    )
    return f"<figure><figcaption>{html.escape(title)}</figcaption><svg viewBox='0 0 {width} 106'>{bars}</svg></figure>"


_STYLE = """
body{font:15px/1.4 system-ui,sans-serif;margin:0;background:#f4f4f2;color:#222}
header{position:sticky;top:0;background:#fff;padding:8px 16px;border-bottom:1px solid #ccc;z-index:2}
h1{font-size:18px;margin:0}header p{margin:2px 0 6px;color:#555}label{margin-right:14px}
details{margin:8px 16px}pre{background:#fff;padding:8px;overflow:auto;max-height:420px}
.charts{display:flex;flex-wrap:wrap;gap:8px}figure{margin:0;background:#fff;padding:6px;width:260px}
figcaption{font-size:12px;color:#555}figure rect{fill:#4a7ab5}figure text{font-size:7px;text-anchor:middle;fill:#444}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(640px,1fr));gap:10px;padding:0 16px 30px}
article{display:flex;gap:10px;background:#fff;padding:8px;border-radius:4px}
.pic{position:relative;flex:0 0 56%;align-self:flex-start;overflow:hidden}
.pic img{width:100%;display:block;min-height:60px}
.pic svg{position:absolute;inset:0;width:100%;height:100%}.txt{flex:1;min-width:0;overflow-wrap:anywhere}
.txt p{margin:0 0 5px}.meta,.num{font-size:12px;color:#777}.a{font-weight:600;color:#0a6b2d}
ul{margin:2px 0 5px;padding-left:18px;font-size:13px;color:#555}.right{color:#0a6b2d;font-weight:600}
.bad{background:#c00;color:#fff;padding:2px 6px}[hidden]{display:none}
"""
_SCRIPT = """
document.querySelectorAll('img[data-id]').forEach(i=>{i.src=pictures[i.dataset.id]});
const by=id=>document.getElementById(id),all=[...document.querySelectorAll('article')];
function show(){const t=by('type').value,s=by('source').value,f=by('find').value.toLowerCase();let n=0;
for(const a of all){const ok=(!t||a.dataset.type===t)&&(!s||a.dataset.source===s)&&(!by('bad').checked||a.dataset.bad)
&&(!f||a.textContent.toLowerCase().includes(f));a.hidden=!ok;n+=ok}by('shown').textContent=n+' shown'}
['type','source','find','bad'].forEach(i=>by(i).addEventListener('input',show));show();
"""
