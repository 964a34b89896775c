"""Requests of prompts, lanes that they fit into, and arrays of prompts answered in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Array, Float, Int

from spatialllm_jax.data.chat import Encoded
from spatialllm_jax.inference import lanes
from spatialllm_jax.inference.board import MOST_READ, Board, Request, one_size
from spatialllm_jax.inference.prompts import bucket
from spatialllm_jax.inference.reading import families, side_by_side
from spatialllm_jax.models.spatialllm import SpatialLLM

T = TypeVar("T")
_SAMPLE = 64        # pictures whose questions decide how wide their rows are
_CALL = 64          # tokens that are read in the time that a call needs besides: about that of reading the weights


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
    return encoded.part(slice(end)), encoded.part(slice(end, None))


def fitting(requests: Sequence[Request], concurrent: int, new: int, held: lanes.Shape | None = None) -> lanes.Shape:
    """Lanes for these requests: `concurrent` at a time, as many on a picture as pictures have questions.

    Args:
        held: lanes that are there: kept, if the requests fit, because another shape is another set of programs.
    """
    before = _ceil(max(request.before.length for request in requests), 16)
    after = bucket(max(request.after.length for request in requests), 16)
    longest = max(request.length for request in requests)
    whole = _ceil(longest, max(16, bucket(longest) // 16))      # in steps, so that later requests fit as well
    groups: dict[Any, list[Encoded]] = {}
    for request in requests:
        groups.setdefault(request.group, []).append(request.after)
    # Where no two share a picture, whole prompts may be less to read: a picture apart takes a call more.
    at_once, *_ = one_size(lanes.Shape(concurrent, 1, before, after, new)).pictures
    alone = len(groups) == len(requests) and len(requests) * whole <= (
        -(-len(groups) // at_once) * (at_once * before + _CALL) + len(requests) * after)
    if held is not None and held.new == new and (
            held.prefix >= before and held.question >= after if held.prefix else alone and held.question >= whole):
        return held
    if alone:
        return lanes.Shape(concurrent, 1, 0, whole, new)
    questions = [len(own) for own in groups.values()]
    each = questions[0] if len(set(questions)) == 1 else 1 << max(0, round(np.log2(np.mean(questions))))
    per_picture = min(concurrent, each)
    shape = lanes.Shape(concurrent // per_picture, per_picture, before, after, new)
    taken = [own[start:start + shape.lanes] for own in [*groups.values()][:_SAMPLE]
             for start in range(0, len(own), shape.lanes)]
    return dataclasses.replace(shape, read=_read(taken, shape))


def _read(groups: Sequence[Sequence[Encoded]], shape: lanes.Shape) -> int:
    """`lanes.Shape.read` with which these questions, as many on a picture as it has lanes, cost least."""
    one_by_one, *_ = one_size(shape).questions
    calls = sum(-(-sum(map(len, part)) // one_by_one) for part in _chunks(groups, shape.rows))
    best = calls * (one_by_one * shape.question + _CALL), 0
    if shape.lanes > 1:
        families_of = [families(own) for own in groups]
        for width in range(_ceil(shape.question + 1, 16), MOST_READ + 1, 16):
            at_once, *_ = one_size(dataclasses.replace(shape, read=width)).questions
            rows = [len(side_by_side(found, own, width, shape.lanes))
                    for found, own in zip(families_of, groups, strict=True)]
            calls = sum(-(-sum(part) // at_once) for part in _chunks(rows, shape.rows))
            best = min(best, (calls * (at_once * width + _CALL), width))
    return best[1]


def _chunks(things: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(things), size):
        yield things[start:start + size]


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
