"""What the engine is asked: an image, a question, perhaps options; and how it becomes static arrays."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from spatialllm_jax.data import chat
from spatialllm_jax.data.tokenizer import Tokenizer
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.types import Region

Picture = tuple[str, tuple[Region, ...]]
PLACE = "<image>"       # where a picture stands in the text of a prompt with several


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One question about one picture, or several.

    Attributes:
        image_id: prompts with the same id and marks show the same picture, which is encoded once.
        image: encoded JPEG or PNG; None blanks the picture (mean colour), for blind baselines; b"" shows none at all,
            the prompt is text alone.
        question: the user's text; "" has a caption generated, in stage 1's `plain` form.
        options: candidate answers to be scored; () when an answer is to be generated.
        marks: regions to draw on the image first.
        history: (question, answer) of the turns before; the picture stands in front of the first.
        system: replaces the system text that the model was trained with.
        more: (image id, image) of the pictures behind the first. Of several, each stands where the first message says
            `PLACE` in its turn; where it never does, they all stand in front, each with a line break behind it.
    """

    image_id: str
    image: bytes | None = dataclasses.field(repr=False)
    question: str
    options: tuple[str, ...] = ()
    marks: tuple[Region, ...] = ()
    history: tuple[tuple[str, str], ...] = ()
    system: str | None = None
    more: tuple[tuple[str, bytes | None], ...] = dataclasses.field(default=(), repr=False)

    @property
    def pictured(self) -> bool:
        """Whether there is a picture, a blank one included."""
        return self.image != b""

    @property
    def picture(self) -> Picture | None:
        """Equal for prompts whose (first) picture has the same pixels; None for text alone."""
        if not self.pictured:
            return None
        return ("", ()) if self.image is None else (self.image_id, self.marks)

    @property
    def each(self) -> tuple[Prompt, ...]:
        """A prompt with one picture for each of them."""
        if not self.more:
            return (self,)
        first = dataclasses.replace(self, more=())
        return first, *(dataclasses.replace(first, image_id=name, image=image, marks=()) for name, image in self.more)

    @property
    def pictures(self) -> tuple[Picture | None, ...]:
        """`picture` of all of them."""
        return tuple(one.picture for one in self.each)

    @property
    def places(self) -> int:
        """Pictures that a row has room for: the power of two at or above their number, so that few programs do."""
        return bucket(1 + len(self.more), 1)

    @property
    def number(self) -> int:
        """What is drawn for this prompt comes from here, whatever else is asked with it."""
        said = [*(name for name, _ in self.more), *(text for turn in self.history for text in turn)]
        return zlib.crc32("\0".join([self.image_id, *said, self.question]).encode())


def picture_id(image: bytes) -> str:
    """An `image_id` that equal files share, and no others; "" for none."""
    return hashlib.sha256(image).hexdigest()[:32] if image else ""


@dataclasses.dataclass(frozen=True)
class ChatSettings:
    """How the model was trained to read: `chat.json` of its folder.

    Attributes:
        template, system: see `data.chat`.
        image_size, resize: how pictures become arrays; models with tiling cut them at the encoder's size instead.
    """

    template: str
    system: str | None
    image_size: int
    resize: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a prompt's pictures are read.

    Attributes:
        tokens: which visual tokens of its row, in order; see `show`.
        sizes: how many of them belong to each picture; () for text alone.
    """

    tokens: Int[np.ndarray, N]
    sizes: tuple[int, ...]


def divided_at_places(text: str, pictures: int) -> tuple[tuple[str, ...], str]:
    """What a first message says before each of its pictures, and behind the last; ((), text) for one, which always
    stands in front.

    Raises:
        UserError: it says `PLACE`, but not once for each.
    """
    if pictures == 1:
        return (), text
    parts = text.split(PLACE)
    if len(parts) == 1:
        parts = ["", *["\n"] * (pictures - 1), f"\n{text}"]
    if len(parts) != pictures + 1:
        raise UserError(f"a question has {PLACE} in {len(parts) - 1} places and {pictures} pictures; write it once for "
                        "each, or nowhere")
    return tuple(parts[:-1]), parts[-1]


def placed(between: Sequence[str], sizes: Sequence[int]) -> dict[str, Any]:
    """`chat.encode`'s arguments for pictures of these sizes, each with its text before it; () for one in front."""
    if not between:
        return {"num_image_tokens": sum(sizes)}
    return {"pictures": tuple(zip(between, sizes, strict=True))}


def open_prompt(tokenizer: Tokenizer, settings: ChatSettings, question: str, *sizes: int,
                history: Sequence[tuple[str, str]] = (), system: str | None = None) -> chat.Encoded:
    """The tokens that an answer to `question` (or, for "", a caption) continues; see `Prompt`.

    Args:
        sizes: positions of each picture.

    Raises:
        UserError: the pictures' places are not as many as they are, or several are to be captioned.
    """
    if not question:
        if len(sizes) > 1:
            raise UserError(f"a caption is of one picture, not of {len(sizes)}; ask a question")
        return chat.encode_plain(tokenizer, None, num_image_tokens=sum(sizes), begin=chat.begin_token(tokenizer))
    turns: list[tuple[str, str | None]] = [*history, (question, None)]
    between, rest = divided_at_places(turns[0][0], max(1, len(sizes)))
    turns[0] = rest, turns[0][1]
    return chat.encode(tokenizer, turns, template=settings.template,
                       system=settings.system if system is None else system, **placed(between, sizes))


def show(encoded: chat.Encoded, layout: Int[np.ndarray, N]) -> chat.Encoded:
    """`encoded` with the k-th of its pictures' positions filled by the visual token `layout[k]`."""
    index = encoded.image_index
    if not len(layout):
        return encoded
    return dataclasses.replace(encoded, image_index=np.where(index < 0, -1, layout[index]).astype(np.int32))


def bucket(length: int, smallest: int = 64) -> int:
    """The power of two at or above `length`, so that few programs serve all prompts."""
    return max(smallest, 1 << (length - 1).bit_length())
