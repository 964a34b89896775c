"""Check mode: is the answer that a question's words give the one that its numbers give?

The words are read back as a person would read them, not through the tables that wrote them, so wrong
wording, swapped options and wrong letters are found; with a scene, the numbers are recomputed as well.
"""

from __future__ import annotations

import re

import numpy as np

from spatialllm_jax.questions.balance import answer_key
from spatialllm_jax.questions.types import Question, Region
from spatialllm_jax.scene import relations
from spatialllm_jax.scene.geometry import viewpoint
from spatialllm_jax.scene.types import Scene

_TWO_WAY = ("closer_to_camera", "closer_to_object", "facing_object", "higher")
_WORDS = {
    "facing_camera": ("front", "left", "back", "right", "top", "bottom"),
    "on_which_side": ("front", "left", "back", "right"),
    "same_direction": ("same", "different"),
    "left_right": ("left", "right"),
    "presence": ("yes", "no"),
}
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# Largest distance between a written number and the quantity: half of the coarsest rounding in use.
_TOLERANCE = {"depth": 0.5, "distance": 0.5, "azimuth": 23.0, "elevation": 8.0, "theta": 8.0}


def stated_answer(question: Question) -> str | None:
    """The answer that the text gives, as `answer_key` names it; None where it is free-form."""
    answer = _full_answer(question)
    if question.type in _TWO_WAY:
        first, second = question.regions[-2:]
        tokens = {"first": _token(first, question), "second": _token(second, question)}
        # Longest first, so that "school bus" does not count as "bus".
        for key, token in sorted(tokens.items(), key=lambda item: -len(item[1])):
            if re.search(rf"(?<!\w){re.escape(token)}(?!\w)", answer, re.IGNORECASE):
                return key
        return None
    words = _WORDS.get(question.type)
    if words is None:
        return None
    for region in question.regions:
        answer = answer.replace(region.phrase, "")
    found = [word for word in words if re.search(rf"\b{word}\b", answer, re.IGNORECASE)]
    return found[0] if len(found) == 1 else None


def recheck(question: Question, scene: Scene | None = None) -> str | None:
    """What is wrong with a question, in words, or None.

    Args:
        scene: recompute the numbers from its boxes too; only for questions with regions.
    """
    if question.answer_index is not None:
        if not 0 <= question.answer_index < len(question.options):
            return f"answer index {question.answer_index} of {len(question.options)} options"
        if question.options[question.answer_index] != question.answer:
            return "the answer is not the right option"
    if question.type in _TWO_WAY or question.type in _WORDS:
        stated, computed = stated_answer(question), answer_key(question)
        if stated != computed:
            return f"the text says {stated}, the numbers say {computed}"
    elif question.type in _TOLERANCE:
        problem = _recheck_number(question)
        if problem:
            return problem
    if scene is not None and question.regions:
        return _recheck_scene(question, scene)
    return None


def _full_answer(question: Question) -> str:
    """The answer, with a letter replaced by the option that the question lists under it."""
    answer = question.answer
    if len(answer) == 1 and "\nA. " in question.text:
        for line in question.text.split("\n"):
            if line.startswith(f"{answer}. "):
                return line[3:]
    return answer


def _token(region: Region, question: Question) -> str:
    if question.region_style == "mark":
        return f"[{region.label}]"
    if question.region_style == "text":
        return "[" + ", ".join(f"{v:.2f}" for v in region.bbox) + "]"
    return region.phrase


def _recheck_number(question: Question) -> str | None:
    answer = question.answer
    for region in question.regions:
        answer = answer.replace(region.phrase, "")
    answer = re.sub(r"\[[^\]]*\]", "", answer)
    found = _NUMBER.findall(answer)
    quantity = question.quantities["distance" if question.type in ("depth", "distance") else question.type]
    if not found:
        return None if question.options else "the answer holds no number"
    value = float(found[-1]) * (0.01 if "centimeter" in answer else 1.0)
    difference = abs(value - quantity)
    if question.type == "azimuth":
        difference = min(difference % 360, 360 - difference % 360)
    tolerance = _TOLERANCE[question.type]
    return None if difference <= tolerance else f"the text says {value:g}, the numbers say {quantity:.3f}"


def _recheck_scene(question: Question, scene: Scene) -> str | None:
    """Compares the quantities with those of the objects in the regions."""
    indices = []
    sides = np.array([scene.camera.width, scene.camera.height] * 2, float)
    for region in question.regions:
        gaps = [float(np.abs(o.bbox2d / sides - region.bbox).max()) for o in scene.objects]
        if not gaps or min(gaps) > 1e-3:
            return f"region {region.label} is no object of the scene"
        indices.append(int(np.argmin(gaps)))
    expected = scene_quantities(question.type, indices, scene)
    for name, value in expected.items():
        if name not in question.quantities:
            return f"quantity {name} is missing"
        # The stored scene is rounded to 1e-5, which arccos near 0 and 180 turns into tenths of a degree.
        tolerance = 0.5 if name.startswith("angle") else 1e-2 + 1e-3 * abs(value)
        if abs(question.quantities[name] - value) > tolerance:
            return f"{name} is {question.quantities[name]:.3f}, the scene says {value:.3f}"
    return None


def scene_quantities(kind: str, indices: list[int], scene: Scene) -> dict[str, float]:
    """The quantities of a spatial or probing question about these objects, from the boxes."""
    arrays = relations.scene_arrays(scene)
    if kind in ("closer_to_camera", "depth"):
        names = ("distance_first", "distance_second") if kind == "closer_to_camera" else ("distance",)
        return {name: arrays.distance[i] for name, i in zip(names, indices, strict=True)}
    if kind == "closer_to_object":
        c, a, b = indices
        return {"distance_first": arrays.between[c][a], "distance_second": arrays.between[c][b]}
    if kind == "facing_object":
        c, a, b = indices
        return {"angle_first": arrays.off_front[c][a], "angle_second": arrays.off_front[c][b]}
    if kind == "same_direction":
        return {"angle": arrays.fronts[indices[0]][indices[1]]}
    if kind == "higher":
        a, b = indices
        return {"height_first": arrays.height[a], "height_second": arrays.height[b]}
    if kind == "facing_camera":
        return {"bearing": arrays.bearing[indices[0]][-1], "elevation": arrays.elevation[indices[0]][-1]}
    if kind == "on_which_side":
        a, b = indices
        return {"bearing": arrays.bearing[a][b], "elevation": arrays.elevation[a][b]}
    if kind == "distance":
        return {"distance": arrays.between[indices[0]][indices[1]]}
    if kind in ("azimuth", "elevation", "theta"):
        values = dict(zip(("azimuth", "elevation", "theta"), viewpoint(scene.objects[indices[0]].box), strict=True))
        return {kind: values[kind]}
    return {}
