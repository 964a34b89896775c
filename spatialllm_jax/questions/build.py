"""Scenes to questions: all families, sampled per image with answers spread evenly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spatialllm_jax.questions import distance, general, orientation, probing, relation, view
from spatialllm_jax.questions.candidates import Case, View
from spatialllm_jax.questions.config import QuestionConfig
from spatialllm_jax.questions.put import put
from spatialllm_jax.questions.references import referable, scene_names
from spatialllm_jax.questions.types import Question
from spatialllm_jax.scene.relations import SceneArrays, scene_arrays
from spatialllm_jax.scene.types import Scene

FAMILIES: dict[str, Callable[[View, int], list[Case]]] = {
    "closer_to_camera": distance.closer_to_camera,
    "closer_to_object": distance.closer_to_object,
    "facing_camera": orientation.facing_camera,
    "facing_object": orientation.facing_object,
    "same_direction": relation.same_direction,
    "higher": relation.higher,
    "on_which_side": relation.on_which_side,
    "depth": probing.depth,
    "distance": probing.distance,
    "azimuth": probing.azimuth,
    "elevation": probing.elevation,
    "theta": probing.theta,
    "location": probing.location,
    "view_left_right": view.left_right,
    "view_above_below": view.above_below,
    "view_front_behind": view.front_behind,
    "caption": general.caption,
    "what": general.what,
    "presence": general.presence,
    "colour": general.colour,
    "count": general.count,
    "left_right": general.left_right,
    "where": general.where,
}


def question_rng(seed: int, index: int, stream: int = 0) -> np.random.Generator:
    """The generator of one scene's questions: a pure function of (seed, scene index, family)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, index, stream))))


def generate_questions(
    scene: Scene, config: QuestionConfig, rng: np.random.Generator, arrays: SceneArrays | None = None
) -> list[Question]:
    """The questions of one family about one scene.

    Per type at most `config.types[type]` cases are taken: answers in turn, cases of an answer at random,
    so that rare answers are not drowned by frequent ones within an image. Balance over a whole dataset
    is `questions.balance`'s.

    Args:
        scene: with boxes that passed the source's checks.
        config: what to ask and how.
        rng: the only randomness; see `question_rng`.
        arrays: `scene_arrays(scene)` when the caller has it already.
    """
    if arrays is None:
        arrays = scene_arrays(scene)
    names = scene_names(scene, config)
    ready = View(scene, arrays, names, referable(names, config), config, rng)
    chosen: list[Case] = []
    for kind, quota in config.types.items():
        if quota > 0:
            chosen.extend(_sample(FAMILIES[kind](ready, quota), quota, rng))
    if 0 < config.max_per_image < len(chosen):
        keep = sorted(rng.permutation(len(chosen))[: config.max_per_image].tolist())
        chosen = [chosen[k] for k in keep]
    prefix = f"{scene.image.id}/{config.name}"
    known: dict[int, str] = {}
    return [put(case, ready, f"{prefix}/{k}", known) for k, case in enumerate(chosen)]


def _sample(cases: list[Case], quota: int, rng: np.random.Generator) -> list[Case]:
    """`quota` cases: answers take turns in random order, cases of an answer come at random."""
    if len(cases) <= quota:
        return cases
    by_answer: dict[str, list[Case]] = {}
    for k in rng.permutation(len(cases)).tolist():
        by_answer.setdefault(cases[k].answer, []).append(cases[k])
    piles = [by_answer[answer] for answer in sorted(by_answer)]
    piles = [piles[k] for k in rng.permutation(len(piles)).tolist()]
    result: list[Case] = []
    while len(result) < quota:
        for pile in piles:
            if pile and len(result) < quota:
                result.append(pile.pop())
    return result
