"""How a question points at an object: by a drawn mark, by coordinates, or by its name."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from spatialllm_jax.questions.config import QuestionConfig
from spatialllm_jax.questions.types import Region
from spatialllm_jax.scene.types import Scene


@dataclasses.dataclass(frozen=True)
class Reference:
    """Attributes:
    text: with an article, for a sentence: "the car in Region [0]".
    short: what a minimal answer says: "car"; "[0]" where only the mark tells two apart.
    """

    text: str
    short: str


@dataclasses.dataclass(frozen=True, eq=False)
class SceneNames:
    """What is needed to refer to the objects of one scene.

    Attributes:
        names: per object, a name that fits no other thing in the image, or None.
        phrases: per object, its phrase.
        boxes: per object, the 2D box as shares of width and height.
        usable: indices of the objects that may be asked about.
    """

    names: list[str | None]
    phrases: list[str]
    boxes: list[tuple[float, float, float, float]]
    usable: list[int]


def scene_names(scene: Scene, config: QuestionConfig) -> SceneNames:
    """Names, boxes and the objects that are clear enough to be asked about (`QuestionConfig`)."""
    width, height = scene.camera.width, scene.camera.height
    hidden = set(scene.hidden)
    categories = Counter(o.category for o in scene.objects)
    phrases = Counter(o.phrase for o in scene.objects)
    names: list[str | None] = []
    for o in scene.objects:
        if "*" in hidden or o.category in hidden:
            names.append(None)
        elif categories[o.category] == 1:
            names.append(o.category)
        else:
            names.append(o.phrase if phrases[o.phrase] == 1 and o.phrase != o.category else None)
    boxes: list[tuple[float, float, float, float]] = []
    usable: list[int] = []
    for i, o in enumerate(scene.objects):
        x1, y1, x2, y2 = o.bbox2d.tolist()
        # Rounded here, so that regions and coordinates written in texts agree to the last digit.
        boxes.append((round(x1 / width, 4), round(y1 / height, 4), round(x2 / width, 4), round(y2 / height, 4)))
        seen = o.visibility >= config.min_visibility and o.truncation <= config.max_truncation
        if seen and y2 - y1 >= config.min_height * height and x2 > x1:
            usable.append(i)
    return SceneNames(names, [o.phrase for o in scene.objects], boxes, usable)


def referable(names: SceneNames, config: QuestionConfig) -> list[int]:
    """The usable objects that the region style can point at."""
    if config.region_style != "name":
        return names.usable
    return [i for i in names.usable if names.names[i] is not None]


def overlap(names: SceneNames, indices: tuple[int, ...], limit: float) -> bool:
    """Whether any two of these objects' regions overlap by more than `limit` (IoU)."""
    for position, i in enumerate(indices):
        ax1, ay1, ax2, ay2 = names.boxes[i]
        for j in indices[position + 1 :]:
            bx1, by1, bx2, by2 = names.boxes[j]
            w, h = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
            if w > 0 and h > 0:
                union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - w * h
                if w * h > limit * union:
                    return True
    return False


def refer(
    names: SceneNames, objects: tuple[int, ...], config: QuestionConfig, labels: Mapping[int, str], noun: str = ""
) -> tuple[list[Reference], tuple[Region, ...]]:
    """References and regions of a question's objects, in the order given.

    A full mark reads "the car in Region [0]"; a short one "the car [0]". Coordinates are x1, y1, x2, y2
    as shares of width and height with two decimals.

    Args:
        labels: object -> number of its region.
        noun: stands for the objects' names in the texts, if given.
    """
    references: list[Reference] = []
    regions: list[Region] = []
    full = config.register == "full"
    for i in objects:
        label = labels[i]
        name = noun or names.phrases[i]
        phrase = names.phrases[i]
        if config.region_style == "name":
            phrase = names.names[i] or phrase
            name = noun or phrase
            references.append(Reference(f"the {name}", name))
        elif config.region_style == "mark":
            where = f"in Region [{label}]" if full else f"[{label}]"
            references.append(Reference(f"the {name} {where}", f"[{label}]"))
        else:
            where = "[" + ", ".join(f"{v:.2f}" for v in names.boxes[i]) + "]"
            references.append(Reference(f"the {name} at {where}", f"{name} at {where}"))
        regions.append(Region(label, names.boxes[i], phrase))
    return references, tuple(regions)
