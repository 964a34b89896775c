"""The viewer's own left or right, above or below, front or behind: extras beside the paper's seven types."""

from __future__ import annotations

from collections.abc import Callable

from spatialllm_jax.questions.candidates import Case, View, one_of
from spatialllm_jax.scene import view_relations
from spatialllm_jax.scene.relations import Verdict


def left_right(view: View, quota: int) -> list[Case]:
    """Left or right of another object in 3D, for the viewer; objects (a, b)."""
    return _cases("view_left_right", view_relations.left_right, ("left", "right"), view, quota)


def above_below(view: View, quota: int) -> list[Case]:
    """Above or below another object; objects (a, b)."""
    return _cases("view_above_below", view_relations.above_below, ("above", "below"), view, quota)


def front_behind(view: View, quota: int) -> list[Case]:
    """In front of or behind another object, for the viewer; objects (a, b)."""
    return _cases("view_front_behind", view_relations.front_behind, ("front", "behind"), view, quota)


def _cases(kind: str, judge: Callable[..., Verdict | None], values: tuple[str, str], view: View, quota: int
           ) -> list[Case]:
    if not view.scene.shared_scale:
        return []
    seen, margins = view.seen, view.config.view_margins
    return one_of(kind, view.pairs(), lambda _arrays, a, b, _margins: judge(seen, a, b, margins), values, view, quota)
