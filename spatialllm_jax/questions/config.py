"""`QuestionConfig`: which questions are asked about a scene, and how they are put."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.labels import REGION_LABELS
from spatialllm_jax.questions.types import GENERAL_TYPES, PROBING_TYPES, SPATIAL_TYPES, VIEW_TYPES
from spatialllm_jax.scene.relations import Margins
from spatialllm_jax.scene.view_relations import ViewMargins

REGION_STYLES = ("mark", "text", "name")
REGISTERS = ("full", "short")
FORMS = ("which", "choice", "yes_no")
AZIMUTH_STYLES = ("words", "degrees")
_Kind = TypeVar("_Kind", Margins, ViewMargins)


@dataclasses.dataclass(frozen=True)
class QuestionConfig:
    """One family of questions.

    Attributes:
        name: of the family; part of every question's id.
        types: question type -> most questions of it per image.
        region_style: how objects are pointed at: "mark" (numbered boxes drawn on the image), "text"
            (normalised coordinates in the question) or "name" (only where the name is unique).
        region_labels: numbers of the regions: "mention" counts in order of mention in each question, as the
            paper does; "image" gives an object its index in the scene; "conversation" counts in order of
            first mention over all questions of the family about an image, so that one marked picture serves
            a conversation (`data.formats.group_questions`).
        register: "full" wording as in SpatialVQA, or "short" wording that a tiny model can read.
        forms: weights of the forms of question: "which" (open), "choice" (options are listed and the answer
            is a letter), "yes_no" (a claim to confirm or deny). Types without a form are asked openly.
        paraphrases: how many wordings per type are in use (the first ones of the table); 0 = all.
        max_per_image: most questions per image over all types; 0 = no limit.
        margins: how clear a case must be.
        view_margins: the same for the view types.
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
    forms: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"which": 1.0})
    paraphrases: int = 0
    max_per_image: int = 0
    margins: Margins = dataclasses.field(default_factory=Margins)
    view_margins: ViewMargins = dataclasses.field(default_factory=ViewMargins)
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
        known = (*SPATIAL_TYPES, *PROBING_TYPES, *VIEW_TYPES, *GENERAL_TYPES)
        for key in self.types:
            if key not in known:
                raise UserError(f"question type {key!r} of {self.name!r} is unknown; choose from {', '.join(known)}")
        for field, choices in (
            ("region_style", REGION_STYLES),
            ("region_labels", REGION_LABELS),
            ("register", REGISTERS),
            ("azimuth_style", AZIMUTH_STYLES),
        ):
            if getattr(self, field) not in choices:
                raise UserError(
                    f"{field} of {self.name!r} is {getattr(self, field)!r}; choose from {', '.join(choices)}"
                )

        for form, weight in self.forms.items():
            if form not in FORMS:
                raise UserError(f"form {form!r} of {self.name!r} is unknown; choose from {', '.join(FORMS)}")
            if not 0 <= weight < float("inf"):
                raise UserError(f"weight {weight!r} of form {form!r} of {self.name!r} must be a number of at least 0")
        if not any(self.forms.values()):
            raise UserError(f"forms of {self.name!r} have no weight above 0; give one of {', '.join(FORMS)} some")

    def draw_form(self, rng: np.random.Generator) -> str:
        """A form in proportion to the weights; draws nothing where there is one only."""
        forms = [(form, weight) for form, weight in self.forms.items() if weight > 0]
        if len(forms) == 1:
            return forms[0][0]
        rest = rng.random() * sum(weight for _, weight in forms)
        for form, weight in forms[:-1]:
            rest -= weight
            if rest < 0:
                return form
        return forms[-1][0]


def question_config(name: str, settings: Mapping[str, Any]) -> QuestionConfig:
    """A `QuestionConfig` from plain settings (a ConfigDict's); raises UserError on an unknown key."""
    settings = dict(settings)
    fields = {f.name for f in dataclasses.fields(QuestionConfig)}
    for key in settings:
        if key not in fields:
            raise UserError(f"question setting {key!r} of {name!r} is unknown; choose from {', '.join(sorted(fields))}")
    settings["name"] = name
    settings["types"] = dict(settings["types"])
    if "forms" in settings:
        settings["forms"] = dict(settings["forms"])
    settings["margins"] = _margins(name, Margins, settings.get("margins"))
    settings["view_margins"] = _margins(name, ViewMargins, settings.get("view_margins"))
    for key in ("categories", "colours"):
        settings[key] = tuple(settings.get(key) or ())
    return QuestionConfig(**settings)


def _margins(name: str, kind: type[_Kind], settings: Mapping[str, Any] | None) -> _Kind:
    """Margins from plain settings; None and {} are the defaults."""
    known = {f.name for f in dataclasses.fields(kind)}
    for key in settings or {}:
        if key not in known:
            raise UserError(f"margin {key!r} of {name!r} is unknown; choose from {', '.join(sorted(known))}")
    return kind(**(settings or {}))
