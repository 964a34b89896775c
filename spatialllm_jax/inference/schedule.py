"""Requests of prompts, lanes that they fit into, and arrays of prompts answered in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from spatialllm_jax.data.chat import Encoded
from spatialllm_jax.inference import lanes
from spatialllm_jax.inference.board import Board, Request
from spatialllm_jax.inference.prompts import bucket
from spatialllm_jax.models.spatialllm import SpatialLLM

_ROW = 256          # tokens of a row of questions
_SPARE = 1.06       # rows are longer than their questions in the mean: seldom does one not fit


def divided(encoded: Encoded, shape: lanes.Shape | None = None) -> tuple[Encoded, Encoded]:
    """A prompt in two: up to its last visual token, and what comes behind, one token at least.

    Args:
        shape: lanes that both have to fit into; where one is too long for them, the other takes some of it. Prompts
            have at most `shape.prefix + shape.question` tokens.
    """
    visual = np.flatnonzero(encoded.image_index >= 0)
    end = min(int(visual[-1]) + 1 if len(visual) else 1, encoded.length - 1)
    if shape is not None:
        end = min(max(end, encoded.length - shape.question), shape.prefix)

    def part(piece: slice) -> Encoded:
        return Encoded(encoded.tokens[piece], encoded.supervised[piece], encoded.branch_ids[piece],
                       encoded.positions[piece], encoded.image_index[piece], ())

    return part(slice(None, end)), part(slice(end, None))


def fitting(requests: Sequence[Request], concurrent: int, new: int, held: lanes.Shape | None = None) -> lanes.Shape:
    """Lanes for these requests: `concurrent` at a time, as many on a picture as pictures have questions.

    Args:
        held: lanes that are there: kept, if the requests fit, because another shape is another set of programs.
    """
    before = _ceil(max(request.before.length for request in requests), 16)
    lengths = [request.after.length for request in requests]
    after = bucket(max(lengths), 16)
    if held is not None and held.new == new and held.prefix >= before and held.question >= after:
        return held
    each = len(requests) / len({request.group for request in requests})
    per_picture = min(concurrent, 1 << max(0, round(np.log2(each))))
    # Questions on a picture are read side by side: rows of all of them, or so many as have _ROW tokens in the mean.
    mean = float(np.mean(lengths))
    beside = max(1, min(per_picture, round(_ROW / mean)))
    read = _ceil(round(_SPARE * mean * beside), 16)
    return lanes.Shape(max(1, concurrent // per_picture), per_picture, before, after, new,
                       read if beside > 1 and read > after else 0)


def _ceil(length: int, step: int) -> int:
    return max(1, -(-length // step)) * step


def generate(model: SpatialLLM, params: Any, tokens: Int[np.ndarray, "B P"], lengths: Int[np.ndarray, B],
             image_index: Int[np.ndarray, "B P"], visual: Float[Array, "B V D"], *, max_new_tokens: int,
             stop: tuple[int, ...], temperature: float = 0.0, seed: int = 0, concurrent: int = 16,
             ) -> Int[np.ndarray, "B N"]:
    """Continues arrays of prompts, each with visual tokens of its own, by up to `max_new_tokens` tokens.

    Args:
        tokens, lengths: prompts, padded on the right.
        image_index, visual: which visual token fills each position, -1 for text; see `SpatialLLM.embed`.
        stop: ids that end an answer; they are part of the output, everything after them is -1.
    """
    requests = []
    for row, length in enumerate(lengths.tolist()):
        zeros = np.zeros(length, np.int32)
        before, after = divided(Encoded(tokens[row, :length], zeros > 0, zeros, np.arange(length),
                                        image_index[row, :length], ()))
        requests.append(Request(row, before, after, max_new_tokens, temperature, seed=seed, number=row))
    out = np.full((len(requests), max_new_tokens), -1, np.int32)

    def done(index: int, answer: list[int]) -> None:
        out[index, :len(answer)] = answer

    shape = fitting(requests, concurrent, max_new_tokens)
    board = Board(model, params, shape, np.array(stop, np.int32), lanes.empty(model, shape, visual.shape[1]))
    board.answer(requests, lambda indices: visual[np.array(indices)], done)
    return out
