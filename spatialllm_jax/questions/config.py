"""`QuestionConfig`: which questions are asked about a scene, and how they are put."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.types import GENERAL_TYPES, PROBING_TYPES, SPATIAL_TYPES
from spatialllm_jax.scene.relations import Margins

REGION_STYLES = ("mark", "text", "name")
REGISTERS = ("full", "short")
ANSWER_STYLES = ("text", "letter")
AZIMUTH_STYLES = ("words", "degrees")


@dataclasses.dataclass(frozen=True)
class QuestionConfig:
    """One family of questions.

    Attributes:
        name: of the family; part of every question's id.
        types: question type -> most questions of it per image.
        region_style: how objects are pointed at: "mark" (numbered boxes drawn on the image), "text"
            (normalised coordinates in the question) or "name" (only where the name is unique).
        region_labels: numbers of the regions: "mention" counts in order of mention, as the paper does;
            "image" gives an object one number in all questions of its image.
        register: "full" wording as in SpatialVQA, or "short" wording that a tiny model can read.
        answer_style: "text", or "letter": options are listed and the answer is a letter.
        paraphrases: how many wordings per type are in use (the first ones of the table); 0 = all.
        max_per_image: most questions per image over all types; 0 = no limit.
        margins: how clear a case must be.
        min_visibility, max_truncation, min_height: objects below are not asked about (2D height as a
            share of the image).
        max_overlap: two regions in one question overlap at most this much (IoU).
        top_bottom: whether "facing camera" knows six sides; else only the four around the object.
        azimuth_style: probing azimuth as one of eight words ("front left") or in degrees.
        angle_step: degrees to which probing angles are rounded.
        distance_step: metres to which short probing distances are rounded.
        categories, colours: what "is there a ..." may ask in vain, and the options of "what" and
            "colour"; empty leaves such questions without negatives or options.
    """

    name: str
    types: Mapping[str, int]
    region_style: str = "mark"
    region_labels: str = "mention"
    register: str = "full"
    answer_style: str = "text"
    paraphrases: int = 0
    max_per_image: int = 0
    margins: Margins = dataclasses.field(default_factory=Margins)
    min_visibility: float = 0.34
    max_truncation: float = 0.33
    min_height: float = 0.05
    max_overlap: float = 0.8
    top_bottom: bool = False
    azimuth_style: str = "degrees"
    angle_step: float = 5.0
    distance_step: float = 0.5
    categories: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = (*SPATIAL_TYPES, *PROBING_TYPES, *GENERAL_TYPES)
        for key in self.types:
            if key not in known:
                raise UserError(f"question type {key!r} of {self.name!r} is unknown; choose from {', '.join(known)}")
        for field, choices in (
            ("region_style", REGION_STYLES),
            ("region_labels", ("mention", "image")),
            ("register", REGISTERS),
            ("answer_style", ANSWER_STYLES),
            ("azimuth_style", AZIMUTH_STYLES),
        ):
            if getattr(self, field) not in choices:
                raise UserError(
                    f"{field} of {self.name!r} is {getattr(self, field)!r}; choose from {', '.join(choices)}"
                )


def question_config(name: str, settings: Mapping[str, Any]) -> QuestionConfig:
    """A `QuestionConfig` from plain settings (a ConfigDict's); raises UserError on an unknown key."""
    settings = dict(settings)
    fields = {f.name for f in dataclasses.fields(QuestionConfig)}
    for key in settings:
        if key not in fields:
            raise UserError(f"question setting {key!r} of {name!r} is unknown; choose from {', '.join(sorted(fields))}")
    settings["name"] = name
    settings["types"] = dict(settings["types"])
    margins = dict(settings.get("margins") or {})
    known = {f.name for f in dataclasses.fields(Margins)}
    for key in margins:
        if key not in known:
            raise UserError(f"margin {key!r} of {name!r} is unknown; choose from {', '.join(sorted(known))}")
    settings["margins"] = Margins(**margins)
    for key in ("categories", "colours"):
        settings[key] = tuple(settings.get(key) or ())
    return QuestionConfig(**settings)
