"""Settings of the source `pseudo_labels`; defaults are SpatialReasoner's where it has such a setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from spatialllm_jax.errors import UserError

GRAVITIES = ("ground", "level", "none")


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which objects are believed.

    Attributes:
        min_mask, max_mask: the mask's share of the image.
        confidence: least score of detection.
        box_threshold, text_threshold: Grounding DINO's own.
        nms: boxes that overlap a better one by more (IoU) are the same object.
        points: least number of points with a depth.
        cluster_points: least number that are left after outliers are gone.
        dbscan_radius, dbscan_neighbours: metres, number: what counts as densely surrounded.
        max_points: masks are thinned to about this many points before clustering.
        max_objects: the surest ones of a picture.
    """

    min_mask: float = 0.0005
    max_mask: float = 0.8
    confidence: float = 0.3
    box_threshold: float = 0.25
    text_threshold: float = 0.2
    nms: float = 0.5
    points: int = 16
    cluster_points: int = 10
    dbscan_radius: float = 0.2
    dbscan_neighbours: int = 10
    max_points: int = 1500
    max_objects: int = 20


@dataclasses.dataclass(frozen=True)
class Judging:
    """How far the estimates are taken to be off: what an object's uncertainty is made of beside the unseen.

    The errors are those of a fully believed object; those of one with confidence c are 1/c times as wide.
    `launch.pseudo_error` measures what they buy.

    Attributes:
        depth_error: share of the depth.
        mask_error: pixels by which the edges of masks may be off; at least 1.
        orientation_error: degrees.
        gravity_error: degrees; of a ground plane, more where fewer points agree (`gravity`).
        hidden: an unseen part is at most this many times as long as the longest seen extent.
        sure_detection: detection scores from here on count as full belief; lower ones in proportion.
        orientation_confidence: below, an object counts as one without a front.
        least_confidence: below, an object is left out.
        trim: share of the points that may lie outside the seen extents at each end.
        upright: objects stand upright: where gravity is known, their boxes are turned to it.
    """

    depth_error: float = 0.1
    mask_error: float = 2.0
    orientation_error: float = 10.0
    gravity_error: float = 3.0
    hidden: float = 4.0
    sure_detection: float = 0.5
    orientation_confidence: float = 0.5
    least_confidence: float = 0.15
    trim: float = 0.01
    upright: bool = True


@dataclasses.dataclass(frozen=True)
class ModelNames:
    """Which models: a folder, or a name on the hub that is in its cache or can be fetched.

    Attributes:
        tagger: a CLIP model that ranks the vocabulary, or "" to look for the whole vocabulary.
        detector: Grounding DINO.
        segmenter: SAM or SAM 2.
        depth: Depth Pro (tells the focal length too) or a metric Depth Anything V2.
        orientation: folder with `config.json` of the DINOv2 backbone and Orient-Anything's weights, or a folder that
            `configs/pose.py` trained; "" for none.
        device: of torch: "cpu", "cuda", ...; "" takes the first accelerator.
    """

    tagger: str = ""
    detector: str = "IDEA-Research/grounding-dino-base"
    segmenter: str = "facebook/sam2.1-hiera-large"
    depth: str = "apple/DepthPro-hf"
    orientation: str = ""
    device: str = ""


@dataclasses.dataclass(frozen=True)
class PseudoLabelConfig:
    """Everything the scenes depend on beside the pictures.

    Attributes:
        models: which.
        vocabulary: names to look for. RAM++, the paper's tagger, is not in transformers: its place takes this list, all
            of it or (with a `models.tagger`) the part that CLIP finds likely.
        vocabulary_chunk: names per call of the detector, whose text has a length.
        most_tags: of a tagger, per picture.
        field_of_view: horizontal, degrees, where no model tells the focal length.
        gravity: "ground" (the plane below that most points agree on, "level" if there is none), "level" (the camera
            is held level, +y) or "none".
        fronts: categories that have a semantic front; () leaves it to the orientation's confidence alone.
        sizes: category -> largest (length, height, width) in metres; narrows what may be unseen.
        max_side: pictures with a longer side, in pixels, are shrunk to it.
        filters, judging: thresholds.
    """

    models: ModelNames = dataclasses.field(default_factory=ModelNames)
    vocabulary: tuple[str, ...] = ()
    vocabulary_chunk: int = 24
    most_tags: int = 12
    field_of_view: float = 55.0
    gravity: str = "ground"
    fronts: tuple[str, ...] = ()
    sizes: Mapping[str, tuple[float, float, float]] = dataclasses.field(default_factory=dict)
    max_side: int = 1600
    filters: Filters = dataclasses.field(default_factory=Filters)
    judging: Judging = dataclasses.field(default_factory=Judging)

    def __post_init__(self) -> None:
        if self.gravity not in GRAVITIES:
            raise UserError(f"pseudo_labels.gravity is {self.gravity!r}; choose from {', '.join(GRAVITIES)}")
        if not 5 <= self.field_of_view <= 170:
            raise UserError(f"pseudo_labels.field_of_view={self.field_of_view} must be in 5..170 degrees")
        for name, low, high in (("vocabulary_chunk", 1, 1000), ("most_tags", 1, 1000), ("max_side", 32, 16384)):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"pseudo_labels.{name}={getattr(self, name)} must be in {low}..{high}")
        if not 0 <= self.judging.trim < 0.5:
            raise UserError(f"pseudo_labels.judging.trim={self.judging.trim} must be in [0, 0.5)")
        if not 0 < self.judging.least_confidence <= 1:
            raise UserError(f"pseudo_labels.judging.least_confidence={self.judging.least_confidence} must be in (0, 1]")


_PARTS: dict[str, Any] = {"models": ModelNames, "filters": Filters, "judging": Judging}


def pseudo_label_config(settings: Mapping[str, Any]) -> PseudoLabelConfig:
    """The config from plain settings (a ConfigDict's); raises UserError on an unknown key or another type."""
    return _filled(PseudoLabelConfig, "pseudo_labels", settings)


def _filled(kind: Any, where: str, settings: Mapping[str, Any]) -> Any:
    known = {f.name: f for f in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in known:
            raise UserError(f"setting {where}.{key} is unknown; choose from {', '.join(sorted(known))}")
        if key in _PARTS:
            value = _filled(_PARTS[key], f"{where}.{key}", value)
        elif key == "sizes":
            value = {name: tuple(map(float, size)) for name, size in value.items()}
        elif isinstance(value, list):
            value = tuple(value)
        values[key] = value
        default = known[key].default
        whole = isinstance(default, float) and type(value) is int
        if default is not dataclasses.MISSING and type(value) is not type(default) and not whole:
            raise UserError(f"setting {where}.{key}={value!r} must be of type {type(default).__name__}")
    return kind(**values)
