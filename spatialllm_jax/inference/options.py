"""Options of questions as rows of the scoring program: branches of their picture's row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from spatialllm_jax.data import chat
from spatialllm_jax.data.tokenizer import Tokenizer
from spatialllm_jax.errors import UserError
from spatialllm_jax.inference import reading
from spatialllm_jax.inference.prompts import ChatSettings, Layout, Prompt, divided_at_places, placed, show


@dataclasses.dataclass
class ScoringRow:
    """One row of the scoring program: pictures, and some of the options of the questions about them.

    Attributes:
        shown: a prompt with these pictures.
        arrays: tokens, positions, segment_ids, branch_ids, image_index, targets as in `data.batch.Batch`, and
            `owner_ids`, k + 1 where the k-th option's tokens are predicted; each [T].
        owners: (prompt, option) of each option.
    """

    shown: Prompt
    arrays: dict[str, Int[np.ndarray, T]]
    owners: list[tuple[int, int]]


def scoring_rows(tokenizer: Tokenizer, settings: ChatSettings, prompts: Sequence[Prompt], *,
                 layout: Callable[[Prompt], Layout], length: int, beside: int = 0) -> list[ScoringRow]:
    """Lays all options of all questions into rows, those on one picture side by side.

    A question is read once for its options, and what several questions begin with once for all of them, as
    `inference.reading` says; but the token that predicts an option's first is each option's own.

    Args:
        layout: how a prompt's pictures are read.
        length: tokens per row.
        beside: options of a row, at most; 0 for what fits.

    Raises:
        UserError: when a single option does not fit into a row, or a prompt has no options, or earlier turns.
    """
    alike: dict[tuple[Any, ...], list[tuple[int, str]]] = {}
    for index, prompt in enumerate(prompts):
        if not prompt.options:
            raise UserError(f"question on image {prompt.image_id!r} has no options to score; generate an answer")
        if prompt.history:
            raise UserError("options are scored on a first question; leave out the turns before it")
        between, question = divided_at_places(prompt.question, 1 + len(prompt.more))
        alike.setdefault((prompt.pictures, prompt.system, between), []).append((index, question))
    rows = []
    for (_, system, between), asked in alike.items():
        shown = prompts[asked[0][0]]
        read = layout(shown)
        pairs = [(index, option) for index, _ in asked for option in range(len(prompts[index].options))]
        questions = dict(asked)
        encoded = show(chat.encode(
            tokenizer, [(questions[i], prompts[i].options[o]) for i, o in pairs], template=settings.template,
            branches=True, system=settings.system if system is None else system, **placed(between, read.sizes)),
            read.tokens)
        trunk, *pieces = _divided(encoded)
        if trunk.length + max(piece.length for piece in pieces) > length:
            raise UserError(f"a question on image {shown.image_id!r} is longer than {length} tokens, "
                            f"{len(read.tokens)} of them for {_images(shown)}; give a greater row length")
        own = [end - start + 1 for start, end in encoded.answers]
        for row in reading.side_by_side(reading.families(pieces, own), pieces, length - trunk.length,
                                        beside or length):
            rows.append(ScoringRow(shown, _arrays(trunk, pieces, row, own, length),
                                   [pairs[k] for k in reading.members(row)]))
    return rows


def _divided(encoded: chat.Encoded) -> Iterator[chat.Encoded]:
    """The trunk, and each branch: a question and an option."""
    base = begin = int(np.flatnonzero(encoded.branch_ids)[0])
    ends = [end for _, end in encoded.answers]
    starts = [base, *ends[:-1]]
    # An option's first token is predicted by the one before it. Where a question has none, that is the trunk's last.
    if any(start == answer for start, (answer, _) in zip(starts, encoded.answers, strict=True)):
        begin -= 1
    yield encoded.part(np.arange(begin))
    for start, end in zip(starts, ends, strict=True):
        yield encoded.part(np.r_[begin:base, start:end])


def _arrays(trunk: chat.Encoded, pieces: Sequence[chat.Encoded], row: Sequence[reading.Family], own: Sequence[int],
            length: int) -> dict[str, Int[np.ndarray, T]]:
    base, width = trunk.length, length - trunk.length
    laid = reading.laid_out(pieces, row, width, len(reading.members(row)), max(piece.length for piece in pieces))
    read = laid.branch > 0
    arrays = {
        "tokens": np.r_[trunk.tokens, laid.tokens], "positions": np.r_[np.arange(base), base + laid.offset],
        "segment_ids": np.r_[np.ones(base, int), read], "branch_ids": np.r_[np.zeros(base, int), laid.branch],
        "image_index": np.r_[trunk.image_index, laid.image_index],
        "targets": np.zeros(length, int), "owner_ids": np.zeros(length, int)}
    for member, k in enumerate(reading.members(row)):
        places = base + laid.source[member, :pieces[k].length][-own[k]:-1]
        arrays["targets"][places] = pieces[k].tokens[1 - own[k]:]
        arrays["owner_ids"][places] = member + 1
    return {name: values.astype(np.int32) for name, values in arrays.items()}


def _images(prompt: Prompt) -> str:
    return f"{1 + len(prompt.more)} images" if prompt.more else "the image"
