"""The engine's measured error: answers about estimated scenes against the truth about the same rendered scenes.

Every case of every type is judged, not a sample: what the estimated scene would be asked and answered, and what the
true boxes say when no margin is wanted (the nearest answer). A *flip* is a case that was asked and answered otherwise.
Lengths are flips when off by more than `Margins.number_share`, viewpoints by more than `Margins.number_degrees`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator

from spatialllm_jax.scene import relations, view_relations
from spatialllm_jax.scene.geometry import bbox_iou, viewpoint
from spatialllm_jax.scene.pose import circular_difference
from spatialllm_jax.scene.relations import Margins, SceneArrays, scene_arrays
from spatialllm_jax.scene.types import Scene
from spatialllm_jax.scene.view_relations import ViewMargins, view_arrays

_ALONE, _PAIRS, _ORDERED, _TRIPLES = range(4)
_PREDICATES: dict[str, tuple[int, Callable[..., relations.Verdict | None]]] = {
    "closer_to_camera": (_PAIRS, relations.closer_to_camera),
    "closer_to_object": (_TRIPLES, relations.closer_to_object),
    "facing_camera": (_ALONE, relations.facing_camera),
    "facing_object": (_TRIPLES, relations.facing_object),
    "same_direction": (_PAIRS, relations.same_direction),
    "higher": (_PAIRS, relations.higher),
    "on_which_side": (_ORDERED, relations.on_which_side),
}
# Predicate, the axis it compares, and the answers for a smaller and a larger first place on it.
_VIEW_PREDICATES: dict[str, tuple[Callable[..., relations.Verdict | None], str, tuple[str, str]]] = {
    "view_left_right": (view_relations.left_right, "right", ("left", "right")),
    "view_above_below": (view_relations.above_below, "up", ("below", "above")),
    "view_front_behind": (view_relations.front_behind, "forward", ("front", "behind")),
}
NUMBERS = ("depth", "distance", "azimuth")
TYPES = (*_PREDICATES, *_VIEW_PREDICATES, *NUMBERS)
# No margins at all: the answer is whatever is nearer.
_NEAREST = Margins(camera_gap=0, camera_ratio=0, object_gap=0, object_ratio=0, side_degrees=45, side_elevation=90,
                   top_elevation=91, facing_degrees=180, facing_other=0, same_degrees=60, different_degrees=60,
                   higher_gap=0, higher_ratio=0)


@dataclasses.dataclass
class Tally:
    """Cases per question type.

    Attributes:
        clear: the true scene would be asked (with margins).
        asked: the estimated scene is asked.
        flipped: of those, answered otherwise than the truth.
        vague: of those, right, but the true scene would not be asked.
        lost: clear in the truth, not asked of the estimate.
        objects, found: true objects, and those of them with an estimated box.
    """

    clear: Counter[str] = dataclasses.field(default_factory=Counter)
    asked: Counter[str] = dataclasses.field(default_factory=Counter)
    flipped: Counter[str] = dataclasses.field(default_factory=Counter)
    vague: Counter[str] = dataclasses.field(default_factory=Counter)
    lost: Counter[str] = dataclasses.field(default_factory=Counter)
    objects: int = 0
    found: int = 0


def without_judging(scene: Scene) -> Scene:
    """The scene with its estimates taken at their word, as annotated boxes are."""
    camera = dataclasses.replace(scene.camera, gravity_error=0.0)
    return dataclasses.replace(scene, camera=camera, objects=tuple(
        dataclasses.replace(o, uncertainty=None) for o in scene.objects))


def matched(estimate: Scene, truth: Scene, least: float = 0.4) -> list[tuple[int, int]]:
    """(estimated, true) indices of the same objects: same category, 2D boxes that overlap by `least` (IoU)."""
    pairs = sorted(((bbox_iou(a.bbox2d, b.bbox2d), i, j) for i, a in enumerate(estimate.objects)
                    for j, b in enumerate(truth.objects) if a.category == b.category), reverse=True)
    found: list[tuple[int, int]] = []
    for overlap, i, j in pairs:
        if overlap >= least and all(i != a and j != b for a, b in found):
            found.append((i, j))
    return sorted(found, key=lambda pair: pair[1])


def compare(estimate: Scene | None, truth: Scene, tally: Tally, margins: Margins | None = None,
            truncation: float = 0.33) -> None:
    """Adds the cases of one scene to a tally; `estimate` None stands for a scene in which nothing was found.

    Args:
        truncation: estimated objects that are cut off by more are not asked about (`QuestionConfig.max_truncation`).
    """
    margins = margins or Margins()
    pairs = [] if estimate is None else matched(estimate, truth)
    tally.objects += len(truth.objects)
    tally.found += len(pairs)
    usable = {j: i for i, j in pairs if estimate is not None and estimate.objects[i].truncation <= truncation}
    true = scene_arrays(truth)
    guess = scene_arrays(estimate) if estimate is not None else None
    for kind, (shape, judge) in _PREDICATES.items():
        for case in _cases(shape, len(truth.objects)):
            asked = judge(guess, *(usable[j] for j in case), margins) if guess and _all(case, usable) else None
            _count(tally, kind, _word(judge(true, *case, margins)), _word(asked),
                   _word(judge(true, *case, _NEAREST)))
    seen, seen_guess = view_arrays(truth), view_arrays(estimate) if estimate is not None else None
    wide = ViewMargins()
    for kind, (view_judge, axis, words) in _VIEW_PREDICATES.items():
        places = getattr(seen, axis)
        for case in _cases(_PAIRS, len(truth.objects)):
            told = (view_judge(seen_guess, *(usable[j] for j in case), wide)
                    if seen_guess and _all(case, usable) else None)
            _count(tally, kind, _word(view_judge(seen, *case, wide)), _word(told),
                   words[0] if places[case[0]] < places[case[1]] else words[1])
    tally.clear.update({"depth": len(truth.objects), "azimuth": sum(o.has_front for o in truth.objects),
                        "distance": len(truth.objects) * (len(truth.objects) - 1) // 2})
    if guess is not None and estimate is not None:
        _numbers(estimate, guess, truth, true, usable, tally, margins)
    for kind in NUMBERS:
        tally.lost[kind] = tally.clear[kind] - tally.asked[kind]


def _numbers(estimate: Scene, guess: SceneArrays, truth: Scene, true: SceneArrays, usable: dict[int, int],
             tally: Tally, margins: Margins) -> None:
    """Depths and azimuths of the objects, distances of the pairs."""
    for j, thing in enumerate(truth.objects):
        if (i := usable.get(j)) is None:
            continue
        if relations.length_sure(guess, i, -1, margins):
            _said(tally, "depth", _off(guess.distance[i], true.distance[j]) > margins.number_share)
        if thing.has_front and estimate.objects[i].has_front and relations.angle_sure(guess, i, margins.number_degrees):
            turned = circular_difference(viewpoint(estimate.objects[i].box)[0], viewpoint(thing.box)[0])
            _said(tally, "azimuth", bool(abs(turned) > margins.number_degrees))
        for k in range(j):
            if (m := usable.get(k)) is not None and relations.length_sure(guess, i, m, margins):
                _said(tally, "distance", _off(guess.between[i][m], true.between[j][k]) > margins.number_share)


def _off(value: float, truth: float) -> float:
    return abs(value - truth) / truth


def _said(tally: Tally, kind: str, wrong: bool) -> None:
    tally.asked[kind] += 1
    tally.flipped[kind] += wrong


def _count(tally: Tally, kind: str, clear: str | None, asked: str | None, nearest: str | None) -> None:
    tally.clear[kind] += clear is not None
    tally.asked[kind] += asked is not None
    tally.flipped[kind] += asked is not None and asked != nearest
    tally.vague[kind] += asked is not None and asked == nearest and clear is None
    tally.lost[kind] += clear is not None and asked is None


def _word(verdict: relations.Verdict | None) -> str | None:
    return None if verdict is None or verdict.answer in ("top", "bottom") else verdict.answer


def _all(case: tuple[int, ...], usable: dict[int, int]) -> bool:
    return all(j in usable for j in case)


def _cases(shape: int, count: int) -> Iterator[tuple[int, ...]]:
    if shape == _ALONE:
        return ((i,) for i in range(count))
    if shape == _PAIRS:
        return itertools.combinations(range(count), 2)
    if shape == _ORDERED:
        return itertools.permutations(range(count), 2)
    return ((c, a, b) for c in range(count) for a, b in itertools.combinations(range(count), 2) if c not in (a, b))
