"""`ImageRecord`: one stored example, an image with its scene and the questions asked about it."""

from __future__ import annotations

import dataclasses

from spatialllm_jax.questions.types import Question


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """An image and all its questions: images are stored once, however many questions they carry.

    Attributes:
        image_id: unique within a dataset.
        image: encoded JPEG or PNG, without any drawn marks; b"" when `file` names it, or for a text without one.
        width, height: in pixels; 0 where only the file knows.
        questions: every `Question.image` equals `image_id`.
        scene: JSON of the camera and boxes (`scene.serialize`), for audits; "" when unknown.
        file: path of the picture, for records that do not carry it: it is read only when its pixels are wanted.
    """

    image_id: str
    image: bytes = dataclasses.field(repr=False)
    width: int
    height: int
    questions: tuple[Question, ...]
    scene: str = dataclasses.field(default="", repr=False)
    file: str = ""

    @property
    def has_image(self) -> bool:
        """Whether there is a picture at all."""
        return bool(self.image or self.file)
