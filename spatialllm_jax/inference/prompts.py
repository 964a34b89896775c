"""What the engine is asked: an image, a question, perhaps options; and how it becomes static arrays."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from spatialllm_jax.data import chat
from spatialllm_jax.data.tokenizer import Tokenizer
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.types import Region

Picture = tuple[str, tuple[Region, ...]]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One question about one picture.

    Attributes:
        image_id: prompts with the same id and marks show the same picture, which is encoded once.
        image: encoded JPEG or PNG; None blanks the picture (mean colour), for blind baselines; b"" shows none at all,
            the prompt is text alone.
        question: the user's text; "" has a caption generated, in stage 1's `plain` form.
        options: candidate answers to be scored; () when an answer is to be generated.
        marks: regions to draw on the image first.
        history: (question, answer) of the turns before; the picture stands in front of the first.
        system: replaces the system text that the model was trained with.
    """

    image_id: str
    image: bytes | None = dataclasses.field(repr=False)
    question: str
    options: tuple[str, ...] = ()
    marks: tuple[Region, ...] = ()
    history: tuple[tuple[str, str], ...] = ()
    system: str | None = None

    @property
    def pictured(self) -> bool:
        """Whether there is a picture, a blank one included."""
        return self.image != b""

    @property
    def picture(self) -> Picture | None:
        """Equal for prompts that show the same pixels; None for text alone."""
        if not self.pictured:
            return None
        return ("", ()) if self.image is None else (self.image_id, self.marks)

    @property
    def number(self) -> int:
        """What is drawn for this prompt comes from here, whatever else is asked with it."""
        said = [text for turn in self.history for text in turn]
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


@dataclasses.dataclass
class ScoringRow:
    """One row of the scoring program: a picture and as many (question, option) branches as fit.

    Attributes:
        arrays: tokens, positions, ... as in `data.batch.Batch`, each [T].
        owners: (prompt, option) of branch k + 1.
    """

    picture: Prompt
    arrays: dict[str, Int[np.ndarray, T]]
    owners: list[tuple[int, int]]


def scoring_rows(tokenizer: Tokenizer, settings: ChatSettings, prompts: Sequence[Prompt], *,
                 layout: Callable[[Prompt], Int[np.ndarray, N]], length: int) -> list[ScoringRow]:
    """Packs all (question, option) pairs into rows, pairs on one picture side by side as branches.

    Args:
        layout: which visual tokens a prompt's picture is read as, see `show`.
        length: tokens per row.

    Raises:
        UserError: when a single pair does not fit into a row, or a prompt has no options, or earlier turns.
    """
    by_picture: dict[tuple[Picture | None, str | None], list[int]] = {}
    for index, prompt in enumerate(prompts):
        if not prompt.options:
            raise UserError(f"question on image {prompt.image_id!r} has no options to score; generate an answer")
        if prompt.history:
            raise UserError("options are scored on a first question; leave out the turns before it")
        by_picture.setdefault((prompt.picture, prompt.system), []).append(index)
    rows = []
    for (_, system), indices in by_picture.items():
        order = layout(prompts[indices[0]])
        pairs = [(index, option) for index in indices for option in range(len(prompts[index].options))]
        while pairs:
            turns = [(prompts[i].question, prompts[i].options[o]) for i, o in pairs]
            encoded = chat.encode(tokenizer, turns, template=settings.template, branches=True, max_length=length,
                                  system=settings.system if system is None else system, num_image_tokens=len(order))
            kept = len(encoded.answers)
            if kept == 0:
                raise UserError(f"a question on image {prompts[indices[0]].image_id!r} is longer than {length} tokens, "
                                f"{len(order)} of them for the image; give a greater row length")
            rows.append(ScoringRow(prompts[indices[0]], _pad(show(encoded, order), length), pairs[:kept]))
            pairs = pairs[kept:]
    return rows


def _pad(encoded: chat.Encoded, length: int) -> dict[str, np.ndarray]:
    targets, weights = chat.next_token_targets(encoded)
    arrays = {"tokens": encoded.tokens, "positions": encoded.positions, "branch_ids": encoded.branch_ids,
              "segment_ids": np.ones(encoded.length, np.int32), "image_index": encoded.image_index,
              "targets": targets, "loss_weights": weights}
    padded = {name: np.zeros(length, value.dtype) for name, value in arrays.items()}
    padded["image_index"] -= 1
    for name, value in arrays.items():
        padded[name][:encoded.length] = value
    return padded


def open_prompt(tokenizer: Tokenizer, settings: ChatSettings, question: str, num_image_tokens: int, *,
                history: Sequence[tuple[str, str]] = (), system: str | None = None) -> chat.Encoded:
    """The tokens that an answer to `question` (or, for "", a caption) continues; see `Prompt`."""
    if not question:
        return chat.encode_plain(tokenizer, None, num_image_tokens=num_image_tokens,
                                 begin=chat.begin_token(tokenizer))
    return chat.encode(tokenizer, [*history, (question, None)], template=settings.template,
                       system=settings.system if system is None else system, num_image_tokens=num_image_tokens)


def show(encoded: chat.Encoded, layout: Int[np.ndarray, N]) -> chat.Encoded:
    """`encoded` with the k-th of its picture's positions filled by the visual token `layout[k]`."""
    index = encoded.image_index
    if not len(layout):
        return encoded
    return dataclasses.replace(encoded, image_index=np.where(index < 0, -1, layout[index]).astype(np.int32))


def bucket(length: int, smallest: int = 64) -> int:
    """The power of two at or above `length`, so that few programs serve all prompts."""
    return max(smallest, 1 << (length - 1).bit_length())
