"""One picture without annotation -> one scene of oriented boxes, each with how far it may be off.

tags -> boxes -> masks -> depth -> camera -> points -> boxes in 3D. Whatever is dropped on the way is counted by reason
and its name kept in `Scene.hidden`, so that no question takes the rest for all there is.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from spatialllm_jax.scene.geometry import bbox_iou
from spatialllm_jax.scene.types import Camera, Object3D, Scene, SceneImage, Uncertainty
from spatialllm_jax.sources.loaded import camera_fault
from spatialllm_jax.sources.pseudo_labels import boxes, points, views
from spatialllm_jax.sources.pseudo_labels.config import Judging, PseudoLabelConfig
from spatialllm_jax.sources.pseudo_labels.interfaces import (
    Calibration,
    DepthMap,
    Detections,
    Estimators,
    Orientation,
    Picture,
)

SOURCE = "pseudo_labels"
STAGES = ("tags", "detection", "masks", "depth", "camera", "orientation", "boxes")
Watch = Callable[[str], contextlib.AbstractContextManager[None]]


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """What became of a picture.

    Attributes:
        scene: None when there is nothing in it to speak of.
        reason: why there is no scene, or "".
        left_out: objects that were dropped, by reason.
    """

    scene: Scene | None
    reason: str
    left_out: Counter[str]


def unwatched(stage: str) -> contextlib.AbstractContextManager[None]:
    """Watches nothing."""
    return contextlib.nullcontext()


def label(image: Picture, name: SceneImage, estimators: Estimators, config: PseudoLabelConfig,
          watch: Watch = unwatched) -> Labelled:
    """The scene of a picture.

    Args:
        image: the pixels that `name` stands for.
        watch: is entered around each stage (STAGES), to measure it.
    """
    height, width = image.shape[:2]
    left_out: Counter[str] = Counter()
    with watch("tags"):
        tags = estimators.tagger.tags(image)
    if not tags:
        return Labelled(None, "image: no tags", left_out)
    with watch("detection"):
        found = estimators.detector.detect(image, tags)
    kept, hidden = believed(found, config, left_out)
    if not len(kept):
        return Labelled(None, "image: no object found", left_out)
    found = Detections(found.boxes[kept], found.scores[kept], tuple(found.labels[k] for k in kept))
    with watch("masks"):
        masks = estimators.segmenter.segment(image, found.boxes)
        owner = views.owners(masks.masks)
    with watch("depth"):
        depth = estimators.depth.depth(image)
    if not points.usable(depth.depth).any():
        return Labelled(None, "depth: no finite value", left_out)
    with watch("camera"):
        calibration = estimators.calibrator.calibrate(image, depth, masks.masks)
    if fault := camera_fault(calibration.intrinsics, width, height):
        return Labelled(None, fault, left_out)
    turned: list[Orientation | None] = [None] * len(found.labels)
    if estimators.orientation is not None:
        with watch("orientation"):
            turned = estimators.orientation.orient(image, found.boxes, found.labels)
    with watch("boxes"):
        objects = []
        for k, category in enumerate(found.labels):
            made = _object(k, found, owner, float(masks.scores[k]), depth, calibration, turned[k], config)
            if isinstance(made, str):
                left_out[made] += 1
                hidden.add(category)
            else:
                objects.append(made)
    if not objects:
        return Labelled(None, "image: no usable object", left_out)
    camera = Camera(width, height, calibration.intrinsics, calibration.gravity, calibration.gravity_error)
    upright = config.judging.upright and calibration.gravity is not None
    return Labelled(Scene(name, camera, tuple(objects), True, SOURCE, hidden=tuple(sorted(hidden)), upright=upright),
                    "", left_out)


def believed(found: Detections, config: PseudoLabelConfig, left_out: Counter[str]
             ) -> tuple[Int[np.ndarray, " K"], set[str]]:
    """(indices of the detections that are sure enough and no second box of the same thing, surest first; the labels of
    those that may be things of their own all the same)."""
    filters = config.filters
    order: list[int] = []
    hidden: set[str] = set()
    for k in np.argsort(-found.scores, kind="stable").tolist():
        if not np.isfinite(found.boxes[k]).all() or not found.scores[k] >= filters.confidence:
            left_out["detection: not sure"] += 1
            hidden.add(found.labels[k])
        elif any(bbox_iou(found.boxes[k], found.boxes[j]) > filters.nms for j in order):
            left_out["detection: same object"] += 1
        elif len(order) >= filters.max_objects:
            left_out["detection: too many"] += 1
            hidden.add(found.labels[k])
        else:
            order.append(k)
    return np.array(order, int), hidden


def _object(k: int, found: Detections, owner: Int[np.ndarray, "H W"], mask_score: float, depth: DepthMap,
            calibration: Calibration, orientation: Orientation | None, config: PseudoLabelConfig) -> Object3D | str:
    """Object k with its box, or why it is left out."""
    filters, judging = config.filters, config.judging
    mask = owner == k
    if not filters.min_mask <= mask.mean() <= filters.max_mask:
        return "mask: too small or too large"
    known = mask & points.usable(depth.depth)
    pixels = points.mask_pixels(views.inner(known, int(judging.mask_error) - 1), filters.max_points)
    if len(pixels) < filters.points:
        return "points: too few"
    cloud = points.points_at(pixels, depth.depth, calibration.intrinsics)
    core = points.main_cluster(cloud, filters.dbscan_radius, filters.dbscan_neighbours)
    if core.sum() < filters.cluster_points:
        return "points: too scattered"
    seen = views.look_at(k, owner, depth.depth, calibration.intrinsics)
    confidence = (min(1.0, float(found.scores[k]) / judging.sure_detection) * float(np.clip(mask_score, 0, 1))
                  * float(core.mean()) * float(known.sum() / mask.sum()))
    if not confidence >= judging.least_confidence:
        return "object: not believed"
    category = found.labels[k]
    fronted = orientation is not None and orientation.confidence >= judging.orientation_confidence and (
        not config.fronts or category in config.fronts)
    fit, rotation_error = _fit(cloud[core], seen, calibration, orientation if fronted else None, category, config)
    return Object3D(
        category, category, fit.box, views.mask_box(mask), fronted, seen.visibility, 0.5 if seen.cut else 0.0,
        uncertainty=_uncertainty(fit, rotation_error, confidence, judging),
    )  # fmt: skip


def _fit(cloud: Float[np.ndarray, "P 3"], seen: views.Seen, calibration: Calibration, orientation: Orientation | None,
         category: str, config: PseudoLabelConfig) -> tuple[boxes.Fit, float]:
    """The box around an object's points, and the degrees that its orientation may be off."""
    judging = config.judging
    down = calibration.gravity if judging.upright else None
    footprint = judging.mask_error * float(np.median(cloud[:, 2]) / calibration.intrinsics[0, 0])
    largest = np.array(config.sizes[category]) if category in config.sizes else None
    center = np.median(cloud, axis=0)
    # A viewpoint is relative to the ray to the centre, which is known only once there is a box.
    for _ in range(1 if orientation is None else 3):
        if orientation is not None:
            rotation = boxes.rotation_of(orientation, center, down)
        else:
            rotation = boxes.rectangle_rotation(cloud, np.array([0.0, 1.0, 0.0]) if down is None else down)
            if largest is not None:     # which side is the length is not known
                largest = np.array([max(largest[0], largest[2]), largest[1], max(largest[0], largest[2])])
        fit = boxes.fit_box(cloud, rotation, seen.rays, trim=judging.trim, hidden=judging.hidden,
                            standing=down is not None, footprint=footprint, largest=largest)
        center = fit.box.center
    if orientation is None:
        return fit, 180.0
    return fit, min(judging.orientation_error / max(orientation.confidence, 1e-3), 180.0)


def _uncertainty(fit: boxes.Fit, turn: float, confidence: float, judging: Judging) -> Uncertainty:
    """What the unseen, the depth and the orientation leave open about a box.

    The centre is half-way between two opposite faces, so it moves by half of what a face does.
    """
    box = fit.box
    ray = box.center / np.linalg.norm(box.center)
    along = judging.depth_error / confidence * float(np.linalg.norm(box.center)) * np.abs(ray @ box.rotation)
    # A frame that is turned by t about the vertical mixes length and width: w sin t of one enters the other. A fitted
    # rectangle is no estimate of anything that is turned; there, the box is what it is.
    mixed = np.sin(np.radians(min(turn, 90.0))) * box.size[[2, 1, 0]] * [0.5, 0.0, 0.5] if turn < 180 else np.zeros(3)
    low, high = (reach / 2 + along + mixed for reach in (fit.low, fit.high))
    # The viewpoint is relative to the ray to the true centre: as far as that is off, so is the rotation.
    sideways = np.maximum(low, high) * np.sqrt(np.maximum(1 - (ray @ box.rotation) ** 2, 0))
    turn = min(turn + float(np.degrees(np.arctan2(np.linalg.norm(sideways), np.linalg.norm(box.center)))), 180.0)
    size = fit.low + fit.high + box.size * judging.depth_error / confidence + 2 * mixed
    return Uncertainty(np.stack([low, high]), size, turn, confidence)
