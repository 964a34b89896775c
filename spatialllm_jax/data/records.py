"""`ImageRecord`: one stored example, an image with its scene and the questions asked about it."""

from __future__ import annotations

import dataclasses

from spatialllm_jax.questions.types import Question


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """An image and all its questions: images are stored once, however many questions they carry.

    Attributes:
        image_id: unique within a dataset.
        image: encoded JPEG or PNG, without any drawn marks.
        width, height: in pixels.
        questions: every `Question.image` equals `image_id`.
        scene: JSON of the camera and boxes (`scene.serialize`), for audits; "" when unknown.
    """

    image_id: str
    image: bytes = dataclasses.field(repr=False)
    width: int
    height: int
    questions: tuple[Question, ...]
    scene: str = dataclasses.field(default="", repr=False)
