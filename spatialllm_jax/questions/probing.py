"""3D-informed probing (paper, 3.3.1): fundamental properties of single objects and pairs.

"Depth of the object from the viewer" is the distance of the box's centre from the camera, the quantity
that "closer to the camera" compares. Azimuth, elevation and theta are relative to the ray to the object
(ImageNet3D's convention, `scene.geometry.viewpoint`). Lengths are asked of metric scenes only; elevation and
in-plane rotation only where the boxes' up axes are the objects' own. Of estimated boxes a number is said only if it is
known well enough (`Margins.number_share`, `number_degrees`).

As a choice, lengths stand beside three others of a ladder with steps of a factor 1.7, in which the right one
is on any rung, so that neither the longest nor the shortest is the likelier; azimuths beside those that are
90, 180 and 270 degrees off. Elevation and rotation have no wrong answers that are as plausible as the right one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from spatialllm_jax.questions.candidates import Case, View
from spatialllm_jax.questions.wording import AZIMUTH_WORDS, listing, metres
from spatialllm_jax.scene.geometry import viewpoint
from spatialllm_jax.scene.relations import angle_sure, length_sure

_LADDER = 1.7
_RUNGS = 4


def depth(view: View, quota: int) -> list[Case]:
    """Distance of an object from the camera; metric scenes only."""
    if not view.arrays.metric:
        return []
    return [
        Case("depth", (i,), "", text=_length(view, view.arrays.distance[i]),
             quantities={"distance": view.arrays.distance[i], "depth": view.arrays.depth[i]},
             wrong=_other_lengths(view, view.arrays.distance[i]))
        for i in view.singles() if length_sure(view.arrays, i, -1, view.config.margins)
    ]  # fmt: skip


def distance(view: View, quota: int) -> list[Case]:
    """Distance between the centres of two objects; metric scenes only."""
    if not view.arrays.metric:
        return []
    cases = []
    for a, b in view.pairs():
        if not length_sure(view.arrays, a, b, view.config.margins):
            continue
        value = view.arrays.between[a][b]
        cases.append(Case("distance", (a, b), "", text=_length(view, value), quantities={"distance": value},
                          wrong=_other_lengths(view, value)))  # fmt: skip
    return cases


def azimuth(view: View, quota: int) -> list[Case]:
    """Azimuth of objects with a semantic front, as one of eight words or in degrees."""
    cases = []
    for i in view.singles():
        if not view.scene.objects[i].has_front:
            continue
        value, elevation, _ = viewpoint(view.scene.objects[i].box)
        if abs(elevation) > 75:  # seen from straight above, azimuth means nothing
            continue
        quantities = {"azimuth": value}
        if view.config.azimuth_style == "words":
            word = round(value / 45.0) % 8
            margin = 22.5 - abs((value + 22.5) % 45.0 - 22.5)
            if not angle_sure(view.arrays, i, margin):
                continue
            cases.append(
                Case("azimuth", (i,), AZIMUTH_WORDS[word], AZIMUTH_WORDS, word, "", quantities, margin)
            )
        elif angle_sure(view.arrays, i, view.config.margins.number_degrees):
            rounded = _rounded(value, view.config.angle_step) % 360
            cases.append(Case("azimuth", (i,), "", text=_degrees(view, rounded), quantities=quantities,
                              wrong=_other_azimuths(view, rounded)))  # fmt: skip
    return cases


def elevation(view: View, quota: int) -> list[Case]:
    """Elevation of the camera in an object's own frame; its up must be known, not its front."""
    if not view.scene.upright:
        return []
    return [_angle_case("elevation", view, i, viewpoint(view.scene.objects[i].box)[1]) for i in _turned(view)]


def theta(view: View, quota: int) -> list[Case]:
    """In-plane rotation, counter-clockwise; the object's up must be known."""
    if not view.scene.upright:
        return []
    return [_angle_case("theta", view, i, viewpoint(view.scene.objects[i].box)[2]) for i in _turned(view)]


def _turned(view: View) -> Iterator[int]:
    """The objects whose rotation is known well enough for an angle."""
    return (i for i in view.singles() if angle_sure(view.arrays, i, view.config.margins.number_degrees))


def location(view: View, quota: int) -> list[Case]:
    """3D location of an object's centre in the camera's frame; metric scenes only."""
    if not view.arrays.metric:
        return []
    cases = []
    for i in view.singles():
        if not length_sure(view.arrays, i, -1, view.config.margins):
            continue
        x, y, z = view.scene.objects[i].box.center.tolist()
        far = max(abs(x), abs(y), abs(z))
        parts = [_offset(view, x, "to the right", "to the left", far), _offset(view, y, "down", "up", far)]
        text = listing([*(part for part in parts if part), f"{_length(view, z, far)} ahead"])
        cases.append(Case("location", (i,), "", text=text, quantities={"x": x, "y": y, "z": z}))
    return cases


def _length(view: View, value: float, like: float | None = None) -> str:
    return metres(value, view.config.distance_step if view.config.register == "short" else 0.0, like)


def _offset(view: View, value: float, positive: str, negative: str, like: float) -> str:
    """ "3.2 meters to the left", as precise as the largest coordinate; "" for what a full sentence rounds to 0."""
    length = _length(view, abs(value), like)
    if view.config.register == "full" and float(length.split()[0]) == 0:
        return ""
    return f"{length} {positive if value > 0 else negative}"


def _other_lengths(view: View, value: float) -> Callable[[np.random.Generator], list[str]]:
    def draw(rng: np.random.Generator) -> list[str]:
        rung = int(rng.integers(_RUNGS))
        texts = [_length(view, value * _LADDER ** (k - rung)) for k in range(_RUNGS)]
        # Coarse rounding may merge short lengths; then there is no fair choice.
        if len(set(texts)) < _RUNGS or texts[0].startswith("0 "):
            return []
        return texts[:rung] + texts[rung + 1:]

    return draw


def _other_azimuths(view: View, value: int) -> Callable[[np.random.Generator], list[str]]:
    return lambda _rng: [_degrees(view, (value + turn) % 360) for turn in (90, 180, 270)]


def _rounded(value: float, step: float) -> int:
    return int(round(value / step) * step)


def _degrees(view: View, value: int) -> str:
    return f"{value} degrees" if view.config.register == "full" else str(value)


def _angle_case(kind: str, view: View, i: int, value: float) -> Case:
    text = _degrees(view, _rounded(value, view.config.angle_step))
    return Case(kind, (i,), "", text=text, quantities={kind: value})
