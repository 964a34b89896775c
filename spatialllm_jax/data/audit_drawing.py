"""What an audit page shows of a picture: its bytes as a URL, and regions, boxes and fronts as SVG."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
from PIL import Image

from spatialllm_jax.data.images import REGION_COLOURS, decode
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.questions.types import Question
from spatialllm_jax.scene.geometry import BOX_EDGES, box_corners, clip_segment, project, valid_box
from spatialllm_jax.scene.types import Object3D, Scene

_WIDTH, _HEIGHT = 720, 400
_PLAIN = (210, 210, 210)


def picture_url(record: ImageRecord, width: int = _WIDTH) -> str:
    """The record's picture as a data URL, at most `width` pixels wide."""
    image = Image.fromarray(decode(record.image, record.image_id))
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def overlay(record: ImageRecord, question: Question, scene: Scene | None) -> str:
    """SVG in the picture's own pixels: regions, projected boxes and fronts."""
    # Thin in wide pictures, whose objects are small.
    unit = min(record.width / _WIDTH, record.height / _HEIGHT) * 1.6
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
