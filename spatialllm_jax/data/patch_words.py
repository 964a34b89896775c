"""Patch words: what the picture shows at each visual token, as a bag of words read off the scene's boxes.

Next-token loss alone ties a word to a place only after thousands of questions: until then a small model
answers from the gist of the picture. Here every visual token is told what it shows, in words of the same
vocabulary ("dog", "left", "3"), and `training.objectives` asks the connector's outputs for them. The
paper is silent on this; rows may use it or not (docs/design.md). Attributes are a setting: a row without 3D
data names what 2D boxes carry, a row with it adds azimuth and distance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from spatialllm_jax.data import images
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.tokenizer import Tokenizer
from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.geometry import viewpoint
from spatialllm_jax.scene.relations import SIDES
from spatialllm_jax.scene.serialize import scene_from_json
from spatialllm_jax.scene.types import Object3D

ATTRIBUTES = ("category", "colour", "azimuth", "distance")
NOTHING = "nothing"
MAX_WORDS = 6


def describe(thing: Object3D, attributes: Sequence[str], metric: bool = True) -> str:
    """The words of one object: category, colour, azimuth as the side that faces the camera most (front, left,
    back, right), distance from the camera in metres, rounded down. What a scene does not know is left out."""
    words = []
    for attribute in attributes:
        if attribute == "category":
            words.append(thing.category)
        elif attribute == "colour":
            words.append(str(thing.attributes.get("colour", "")))
        elif attribute == "azimuth" and thing.has_front:
            words.append(SIDES[round(viewpoint(thing.box)[0] / 90.0) % 4])
        elif attribute == "distance" and metric:
            words.append(str(int(np.linalg.norm(thing.box.center))))
    return " ".join(word for word in words if word)


def patch_texts(record: ImageRecord, attributes: Sequence[str], grid: int, resize: str = "pad") -> list[str]:
    """The words of every cell of a `grid` x `grid` map of the squared image, row by row.

    A cell belongs to the object whose 2D box holds its centre; of several, to the one with the smallest box,
    which is seldom behind. Cells of none say `NOTHING`.

    Raises:
        UserError: the record has no scene.
    """
    if not record.scene:
        raise UserError(f"image {record.image_id} has no scene, which patch words are read from; leave patch_words "
                        "empty for its dataset or regenerate it")
    scene = scene_from_json(record.scene)
    texts = [NOTHING] * grid**2
    squared = images.transform(record.width, record.height, grid, resize)
    boxes = [squared.boxes(thing.bbox2d) for thing in scene.objects]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in boxes]
    centres = np.arange(grid) + 0.5
    for index in sorted(range(len(boxes)), key=lambda i: -areas[i]):
        x1, y1, x2, y2 = boxes[index]
        words = describe(scene.objects[index], attributes, scene.metric)
        inside = ((centres >= y1) & (centres <= y2))[:, None] & ((centres >= x1) & (centres <= x2))[None]
        for cell in np.flatnonzero(inside):
            texts[cell] = words or NOTHING
    return texts


def patch_targets(record: ImageRecord, tokenizer: Tokenizer, attributes: Sequence[str], grid: int,
                  resize: str = "pad") -> Int[np.ndarray, "cells MAX_WORDS"]:
    """Token ids of every cell's words, -1 where there are fewer than `MAX_WORDS`."""
    targets = np.full((grid**2, MAX_WORDS), -1, np.int32)
    for cell, text in enumerate(patch_texts(record, attributes, grid, resize)):
        ids = tokenizer.encode(text)[:MAX_WORDS]
        targets[cell, :len(ids)] = ids
    return targets


def vocabulary(record: ImageRecord, attributes: Sequence[str]) -> list[str]:
    """The texts of a record's objects and of the background, for training a tokenizer."""
    scene = scene_from_json(record.scene)
    return [NOTHING, *(describe(thing, attributes, scene.metric) for thing in scene.objects)]
