"""Check mode: is the answer that a question's words give the one that its numbers give?

The words are read back as a person would read them (`questions.reading`), not through the tables that wrote
them, so wrong wording, swapped options, wrong letters and twisted claims are found; with a scene, the numbers
are recomputed as well.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from spatialllm_jax.questions import reading
from spatialllm_jax.questions.balance import answer_key
from spatialllm_jax.questions.types import Question
from spatialllm_jax.scene import relations, view_relations
from spatialllm_jax.scene.geometry import viewpoint
from spatialllm_jax.scene.types import Scene

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# Largest distance between a written number and the quantity: half of the coarsest rounding in use.
_TOLERANCE = {"depth": 0.5, "distance": 0.5, "azimuth": 23.0, "elevation": 8.0, "theta": 8.0}
_AXES = {"x": r"to the (?P<plus>right)|to the (?P<minus>left)", "y": r"(?P<plus>down)|(?P<minus>up)",
         "z": r"(?P<plus>ahead)|(?P<minus>behind)"}

# A scene's questions come one after the other.
_arrays = functools.lru_cache(maxsize=1)(relations.scene_arrays)
_seen = functools.lru_cache(maxsize=1)(view_relations.view_arrays)


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
    if question.form == "yes_no":
        problem = _recheck_claim(question)
    elif question.form == "choice" and len(set(reading.full_options(question))) != len(question.options):
        problem = "two of the options listed are the same, or one is missing"
    elif question.type in _TOLERANCE and not (question.type == "azimuth" and _in_words(question)):
        problem = _recheck_number(question)
    elif question.type == "count":
        problem = _recheck_count(question)
    elif question.type == "location":
        problem = _recheck_location(question)
    elif question.type in reading.TWO_WAY or question.type in reading.WORDS:
        stated, computed = reading.stated_answer(question), answer_key(question)
        problem = None if stated == computed else f"the text says {stated}, the numbers say {computed}"
    else:
        problem = None
    if problem is None and scene is not None and question.regions:
        return _recheck_scene(question, scene)
    return problem


def _recheck_claim(question: Question) -> str | None:
    """A claim's text, its "yes" or "no" and its other option against the numbers."""
    truth, claim = answer_key(question), reading.claimed(question)
    if claim is None or claim != question.claim:
        return f"the text claims {claim}, the record {question.claim}"
    left = reading.said_of_claim(question)
    if left is None or truth not in left:
        return f"the answer to the claim {claim} leaves {sorted(left or ())}, the numbers say {truth}"
    if (claim == truth) != question.answer.lower().startswith("yes"):
        return f"the answer to the claim {claim} begins with the wrong word, the numbers say {truth}"
    for option in question.options:
        if option != question.answer and truth in (reading.said_of_claim(question, option) or {truth}):
            return "the other option to a claim does not say the opposite"
    return None


def _in_words(question: Question) -> bool:
    return not _NUMBER.search(_answer_without_objects(question))


def _answer_without_objects(question: Question) -> str:
    return re.sub(r"⟨\d⟩", "", reading.masked(reading.full_answer(question), question))


def _recheck_number(question: Question) -> str | None:
    answer = _answer_without_objects(question)
    quantity = question.quantities["distance" if question.type in ("depth", "distance") else question.type]
    found = _NUMBER.findall(answer)
    if not found:
        return "the answer holds no number"
    value = float(found[-1]) * (0.01 if "centimeter" in answer else 1.0)
    difference = abs(value - quantity)
    if question.type == "azimuth":
        difference = min(difference % 360, 360 - difference % 360)
    tolerance = _TOLERANCE[question.type]
    return None if difference <= tolerance else f"the text says {value:g}, the numbers say {quantity:.3f}"


def _recheck_count(question: Question) -> str | None:
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    found = [k for k, word in enumerate(words) if re.search(rf"\b{word}\b", question.answer, re.IGNORECASE)]
    counted = int(question.quantities["count"])
    if found == [counted] or str(counted) in _NUMBER.findall(question.answer):
        return None
    return f"the text counts {found}, the numbers say {counted}"


def _recheck_location(question: Question) -> str | None:
    """Each coordinate said, sign and unit included; one that is not said must be about zero."""
    answer = _answer_without_objects(question)
    for axis, words in _AXES.items():
        found = re.search(rf"(-?\d+(?:\.\d+)?) (centimeters?|meters?|m) (?:{words})", answer)
        value = 0.0
        if found:
            value = float(found[1]) * (0.01 if found[2].startswith("c") else 1.0) * (1 if found["plus"] else -1)
        if abs(value - question.quantities[axis]) > _TOLERANCE["distance"]:
            return f"the text says {axis} = {value:g}, the numbers say {question.quantities[axis]:.3f}"
    return None


def _recheck_scene(question: Question, scene: Scene) -> str | None:
    """Compares the quantities with those of the objects in the regions."""
    indices = []
    sides = np.array([scene.camera.width, scene.camera.height] * 2, float)
    for region in question.regions:
        gaps = [float(np.abs(o.bbox2d / sides - region.bbox).max()) for o in scene.objects]
        if not gaps or min(gaps) > 1e-3:
            return f"region {region.label} is no object of the scene"
        indices.append(int(np.argmin(gaps)))
    if question.type in ("what", "colour"):
        o = scene.objects[indices[0]]
        truth = o.category if question.type == "what" else o.attributes.get("colour", "")
        if not re.search(rf"\b{re.escape(truth)}\b", reading.full_answer(question), re.IGNORECASE):
            return f"the text says {reading.full_answer(question)!r}, the scene says {truth!r}"
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
    """The quantities of a spatial, view or probing question about these objects, from the boxes."""
    arrays = _arrays(scene)
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
    if kind.startswith("view_"):
        seen = _seen(scene)
        axis, numbers = {"view_left_right": ("right", seen.right), "view_above_below": ("up", seen.up),
                         "view_front_behind": ("forward", seen.forward)}[kind]  # fmt: skip
        return {f"{axis}_{name}": numbers[i] for name, i in zip(("first", "second"), indices, strict=True)}
    if kind == "location":
        return dict(zip("xyz", scene.objects[indices[0]].box.center.tolist(), strict=True))
    if kind == "distance":
        return {"distance": arrays.between[indices[0]][indices[1]]}
    if kind in ("azimuth", "elevation", "theta"):
        values = dict(zip(("azimuth", "elevation", "theta"), viewpoint(scene.objects[indices[0]].box), strict=True))
        return {kind: values[kind]}
    return {}
