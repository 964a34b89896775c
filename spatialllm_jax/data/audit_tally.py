"""Counts over a whole split, record by record, in memory that does not grow: what an audit's histograms show."""

from __future__ import annotations

import bisect
import html
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.questions.balance import answer_key
from spatialllm_jax.questions.recheck import recheck
from spatialllm_jax.questions.types import Question
from spatialllm_jax.scene.geometry import valid_box, viewpoint
from spatialllm_jax.scene.serialize import scene_from_json
from spatialllm_jax.scene.types import Scene

_DEPTHS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 80.0)
_GAPS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0)
# Width of the bins of an angle, by the start of its name; degrees.
_ANGLES = {"bearing": 30.0, "azimuth": 30.0, "angle": 15.0, "elevation": 15.0, "theta": 15.0}
# Width of the bins of a margin that is not a length: degrees, or a share of the picture's width.
_MARGINS = {"facing_camera": 5.0, "on_which_side": 5.0, "azimuth": 5.0, "same_direction": 15.0,
            "facing_object": 15.0, "left_right": 0.1}  # fmt: skip
_MANY = 16


class Tally:
    """Questions, disagreements and histograms of a split.

    Attributes:
        images, questions: numbers so far.
        types, sources, forms: questions per type, source and form.
        wrong: per type, questions whose answer disagrees with their numbers.
        problems: the first ten of them, as (question id, what is wrong).
    """

    def __init__(self) -> None:
        self.images = self.questions = 0
        self.types: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.forms: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.problems: list[tuple[str, str]] = []
        self._answers: dict[str, Counter[str]] = defaultdict(Counter)
        self._bins: dict[str, Counter[float]] = defaultdict(Counter)

    def add(self, record: ImageRecord) -> None:
        """Counts a record and rechecks all its answers, against its 3D scene where it has one."""
        scene = scene_from_json(record.scene) if record.scene else None
        self.images += 1
        if scene is not None:
            self._add_objects(scene)
        for question in record.questions:
            problem = recheck(question, scene)
            if problem is not None:
                self.wrong[question.type] += 1
                if len(self.problems) < 10:
                    self.problems.append((question.id, problem))
            self._add_question(question)

    def _add_objects(self, scene: Scene) -> None:
        for o in scene.objects:
            if valid_box(o.box) is not None:
                continue
            if scene.metric:
                self._bins["depth of all objects (z, m)"][_edge(float(o.box.center[2]), _DEPTHS)] += 1
            if o.has_front:
                azimuth = math.floor(viewpoint(o.box)[0] / 30.0) * 30.0
                self._bins["azimuth of all objects with a front (°)"][azimuth] += 1

    def _add_question(self, question: Question) -> None:
        kind = question.type
        self.questions += 1
        self.types[kind] += 1
        self.sources[question.source] += 1
        self.forms[question.form] += 1
        if question.answer_index is not None:
            key = answer_key(question)
            if question.form != "choice" or key != question.answer:  # a letter among numbers is no answer to count
                self._answers[f"answers: {kind}"][key] += 1
            if question.form == "yes_no":
                self._answers[f"claims: {kind}"]["yes" if question.claim == key else "no"] += 1
            elif question.form == "choice":
                self._answers[f"letters: {kind}"][question.answer] += 1
        for name, value in question.quantities.items():
            width = next((width for start, width in _ANGLES.items() if name.startswith(start)), None)
            if width is not None:
                self._bins[f"{name}: {kind} (°)"][math.floor(value / width) * width] += 1
        if question.margin is not None:
            width = _MARGINS.get(kind)
            start = _edge(question.margin, _GAPS) if width is None else math.floor(question.margin / width) * width
            unit = "m" if width is None else "share" if width < 1 else "°"
            self._bins[f"margin: {kind} ({unit})"][round(start, 3)] += 1

    def charts(self) -> str:
        """The histograms as HTML figures; a bar's label is where its bin starts."""
        charts = [_bars("forms", self.forms)]
        charts += [_bars(title, dict(sorted(counts.items()))) for title, counts in sorted(self._answers.items())]
        charts += [
            _bars(title, {f"{start:g}": number for start, number in sorted(counts.items())})
            for title, counts in sorted(self._bins.items())
        ]
        return "".join(charts)


def _edge(value: float, edges: Sequence[float]) -> float:
    """Where the bin of a value starts; values below the first edge count to it."""
    return edges[max(bisect.bisect_right(edges, value) - 1, 0)]


def _bars(title: str, counts: Mapping[str, int]) -> str:
    if len(counts) > _MANY:
        counts = dict(sorted(counts.items(), key=lambda item: -item[1])[:_MANY])
    top, width, step = max(counts.values(), default=1) or 1, 250, 250 / max(len(counts), 1)
    bars = "".join(
        f"<rect x='{k * step + 1:.1f}' y='{90 - 70 * n / top:.1f}' width='{step - 2:.1f}' height='{70 * n / top:.1f}'/>"
        f"<text x='{(k + 0.5) * step:.1f}' y='{86 - 70 * n / top:.1f}' class='n'>{n}</text>"
        f"<text x='{(k + 0.5) * step:.1f}' y='100' class='l'>{html.escape(str(label))[:9]}</text>"
        for k, (label, n) in enumerate(counts.items())
    )
    return f"<figure><figcaption>{html.escape(title)}</figcaption><svg viewBox='0 0 {width} 106'>{bars}</svg></figure>"
