"""Distance questions: closer to the camera, closer to an object (paper, Supplement B: distance)."""

from __future__ import annotations

from spatialllm_jax.questions.candidates import Case, View, two_way
from spatialllm_jax.scene import relations


def closer_to_camera(view: View, quota: int) -> list[Case]:
    """Which of two objects is closer to the camera; objects (a, b)."""
    return two_way("closer_to_camera", view.pairs(), relations.closer_to_camera, view, quota)


def closer_to_object(view: View, quota: int) -> list[Case]:
    """Which of two objects is closer to a third; objects (anchor, a, b)."""
    return two_way("closer_to_object", view.triples(), relations.closer_to_object, view, quota)
