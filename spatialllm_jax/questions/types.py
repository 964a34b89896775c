"""`Question`: what the data engine writes, the trainer reads and the evaluation scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

# The seven types of SpatialVQA (paper, Supplement B) and their three groups.
SPATIAL_TYPES: dict[str, str] = {
    "closer_to_camera": "distance",
    "closer_to_object": "distance",
    "facing_camera": "orientation",
    "facing_object": "orientation",
    "same_direction": "relation",
    "higher": "relation",
    "on_which_side": "relation",
}
# 3D-informed probing (paper, 3.3.1): fundamental properties of single objects or pairs.
PROBING_TYPES = ("depth", "distance", "azimuth", "elevation", "theta", "location")
# The viewer's own left and right, above and below, front and behind in 3D: extras, not in the paper.
VIEW_TYPES = ("view_left_right", "view_above_below", "view_front_behind")
# Stand-ins for CC558K and Mix665K: what an image says without 3D.
GENERAL_TYPES = ("caption", "what", "presence", "colour", "count", "left_right", "where")


@dataclasses.dataclass(frozen=True)
class Region:
    """An object a question points at.

    Attributes:
        label: what a drawn mark shows and the text says: "0" for "Region [0]".
        bbox: x1, y1, x2, y2 as shares of width and height in [0, 1].
        phrase: the object's name.
    """

    label: str
    bbox: tuple[float, float, float, float]
    phrase: str


@dataclasses.dataclass(frozen=True)
class Question:
    """One question (or one conversation) about one image, with everything needed to audit it.

    Attributes:
        id: unique within a dataset.
        image: id of the image record it belongs to.
        type: a key of SPATIAL_TYPES, or one of PROBING_TYPES, VIEW_TYPES, GENERAL_TYPES.
        group: "distance", "orientation", "relation", "probing", "view" or "general".
        source: name of the scene source.
        turns: (user text, assistant text) pairs, in order; single questions have one. Texts hold no
            image placeholder: the chat template puts the image where it belongs.
        regions: the objects pointed at. With style "mark" they are drawn on the image when it is read.
        region_style: "mark", "text" or "name".
        options: for multiple choice, the candidate answers as the assistant would say them; else ().
        answer_index: the right option, or None for free-form questions.
        form: "which" (open: the answer is said), "choice" (options listed, the answer is a letter) or
            "yes_no" (a claim to confirm or deny).
        claim: of a yes_no question, the answer that it claims, as `balance.answer_key` names answers; else "".
        quantities: the 3D numbers the answer came from (metres, degrees), by name.
        margin: how far the quantities are from the verdict's boundary, in the predicate's own unit.
    """

    id: str
    image: str
    type: str
    group: str
    source: str
    turns: tuple[tuple[str, str], ...]
    regions: tuple[Region, ...] = ()
    region_style: str = "name"
    options: tuple[str, ...] = ()
    answer_index: int | None = None
    quantities: Mapping[str, float] = dataclasses.field(default_factory=dict)
    margin: float | None = None
    form: str = "which"
    claim: str = ""

    @property
    def text(self) -> str:
        """The first user turn."""
        return self.turns[0][0]

    @property
    def answer(self) -> str:
        """The first assistant turn."""
        return self.turns[0][1]


def group_of(kind: str) -> str:
    """The group of a question type: "distance", "orientation", "relation", "probing", "view" or "general"."""
    if kind in SPATIAL_TYPES:
        return SPATIAL_TYPES[kind]
    if kind in PROBING_TYPES:
        return "probing"
    return "view" if kind in VIEW_TYPES else "general"
