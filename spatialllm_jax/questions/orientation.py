"""Orientation questions: facing camera, facing object (paper, Supplement B: orientation)."""

from __future__ import annotations

from spatialllm_jax.questions.candidates import Case, View, one_of, two_way
from spatialllm_jax.scene import relations


def facing_camera(view: View, quota: int) -> list[Case]:
    """Which side of an object faces the camera; objects (a,). Top and bottom only if the config says."""
    values = (*relations.SIDES, "top", "bottom") if view.config.top_bottom else relations.SIDES
    groups = ((i,) for i in view.singles())
    return one_of("facing_camera", groups, relations.facing_camera, values, view, quota)


def facing_object(view: View, quota: int) -> list[Case]:
    """Which of two objects a third faces; objects (anchor, a, b)."""
    return two_way("facing_object", view.triples(), relations.facing_object, view, quota)
