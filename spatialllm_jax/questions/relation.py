"""Spatial relationships: same direction, higher, on which side (paper, Supplement B)."""

from __future__ import annotations

from spatialllm_jax.questions.candidates import Case, View, one_of, two_way
from spatialllm_jax.scene import relations


def same_direction(view: View, quota: int) -> list[Case]:
    """Whether two objects face the same or very different directions; objects (a, b)."""
    values = ("same", "different")
    return one_of("same_direction", view.pairs(), relations.same_direction, values, view, quota)


def higher(view: View, quota: int) -> list[Case]:
    """Which of two objects is higher; objects (a, b)."""
    return two_way("higher", view.pairs(), relations.higher, view, quota)


def on_which_side(view: View, quota: int) -> list[Case]:
    """On which side of the anchor the target is, in the anchor's frame; objects (anchor, target)."""
    groups = view.pairs(ordered=True)
    return one_of("on_which_side", groups, relations.on_which_side, relations.SIDES, view, quota)
