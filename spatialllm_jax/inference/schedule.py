"""Which question goes where: pictures into rows, their questions into lanes, whenever some are free."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from spatialllm_jax.data.chat import Encoded
from spatialllm_jax.inference import lanes
from spatialllm_jax.inference.prompts import bucket
from spatialllm_jax.models.spatialllm import SpatialLLM

# Pictures and questions are taken up so many at a time, by programs of that size.
_BEGIN, _ASK = 8, 16


@dataclasses.dataclass(frozen=True)
class Request:
    """One answer to be generated.

    Attributes:
        group: equal for requests with the same `before`, whose keys and values are then made once.
        before, after: the prompt up to its picture's end, and the rest, which has a token at least.
        limit: tokens of the answer, at most.
        temperature: 0 for the likeliest tokens.
        number: what the draws of this request come from.
    """

    group: Any
    before: Encoded
    after: Encoded
    limit: int
    temperature: float = 0.0
    number: int = 0


def divided(encoded: Encoded) -> tuple[Encoded, Encoded]:
    """A prompt in two: up to its last visual token, and what comes behind, one token at least."""
    visual = np.flatnonzero(encoded.image_index >= 0)
    end = min(int(visual[-1]) + 1 if len(visual) else 1, encoded.length - 1)

    def part(piece: slice) -> Encoded:
        return Encoded(encoded.tokens[piece], encoded.supervised[piece], encoded.branch_ids[piece],
                       encoded.positions[piece], encoded.image_index[piece], ())

    return part(slice(None, end)), part(slice(end, None))


def fitting(requests: Sequence[Request], concurrent: int, new: int, held: lanes.Shape | None = None) -> lanes.Shape:
    """Lanes for these requests: `concurrent` at a time, as many on a picture as pictures have questions.

    Args:
        held: lanes that are there: kept, if the requests fit, because another shape is another set of programs.
    """
    before = max(1, -(-max(request.before.length for request in requests) // 64)) * 64
    after = bucket(max(request.after.length for request in requests), 16)
    if held is not None and held.new == new and held.prefix >= before and held.question >= after:
        return held
    each = len(requests) / len({request.group for request in requests})
    per_picture = min(concurrent, 1 << max(0, round(np.log2(each))))
    return lanes.Shape(max(1, concurrent // per_picture), per_picture, before, after, new)


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
        requests.append(Request(row, before, after, max_new_tokens, temperature, row))
    out = np.full((len(requests), max_new_tokens), -1, np.int32)

    def done(index: int, answer: list[int]) -> None:
        out[index, :len(answer)] = answer

    shape = fitting(requests, concurrent, max_new_tokens)
    board = Board(model, params, shape, np.array(stop, np.int32), lanes.empty(model, shape, visual.shape[1]))
    board.answer(requests, lambda indices: visual[np.array(indices)], done, seed)
    return out


@dataclasses.dataclass
class Board:
    """Lanes, and who is in them."""

    model: SpatialLLM
    params: Any
    shape: lanes.Shape
    stops: Int[np.ndarray, N]
    state: lanes.State

    def answer(self, requests: Sequence[Request], visual: Callable[[Sequence[int]], jax.Array],
               done: Callable[[int, list[int]], None], seed: int = 0) -> None:
        """Runs all requests.

        Args:
            visual: visual tokens `[G, V, D]` of the pictures of these requests.
            done: told a request's index and its tokens, as soon as it has ended.
            seed: of the draws.
        """
        waiting = collections.deque(_groups(requests))
        queues: list[collections.deque[int]] = [collections.deque() for _ in range(self.shape.rows)]
        holder = np.full((self.shape.rows, self.shape.lanes), -1)
        keys = _keys(requests, seed)
        while waiting or any(queues) or (holder >= 0).any():
            fresh = []
            for row, queue in enumerate(queues):
                if waiting and not queue and (holder[row] < 0).all():
                    queues[row] = waiting.popleft()
                    fresh.append((row, queues[row][0]))
            for start in range(0, len(fresh), size := min(_BEGIN, self.shape.rows)):
                self._begin(fresh[start:start + size], size, requests, visual)
            asked = []
            for row, lane in zip(*np.nonzero(holder < 0), strict=True):
                if queues[row]:
                    holder[row, lane] = queues[row].popleft()
                    asked.append((int(row), int(lane), int(holder[row, lane])))
            for start in range(0, len(asked), size := min(_ASK, holder.size)):
                self._ask(asked[start:start + size], size, requests, keys)
            busy = int((holder >= 0).sum())
            # While others wait, lanes that end are filled again, a quarter of them at a time.
            enough = holder.size - busy + max(1, busy // 4) if waiting or any(queues) else holder.size
            self.state = lanes.advance(self.model, self.params, self.shape, self.state, self.stops, np.int32(enough),
                                       np.int32(self.shape.new), sampled=_sampled(requests))
            active, out = jax.device_get((self.state.active, self.state.out))
            for row, lane in zip(*np.nonzero((holder >= 0) & ~active), strict=True):
                done(int(holder[row, lane]), [token for token in out[row, lane].tolist() if token >= 0])
                holder[row, lane] = -1

    def _begin(self, pictures: Sequence[tuple[int, int]], size: int, requests: Sequence[Request],
               visual: Callable[[Sequence[int]], jax.Array]) -> None:
        padded = [*pictures, *[(self.shape.rows, pictures[0][1])] * (size - len(pictures))]
        tokens, index, lengths = _stacked([requests[k].before for _, k in padded], self.shape.prefix)
        self.state = lanes.begin(self.model, self.params, self.shape, self.state, _numbers(row for row, _ in padded),
                                 tokens, lengths, index, visual([k for _, k in padded]))

    def _ask(self, questions: Sequence[tuple[int, int, int]], size: int, requests: Sequence[Request],
             keys: np.ndarray) -> None:
        padded = [*questions, *[(self.shape.rows, 0, questions[0][2])] * (size - len(questions))]
        asked = [requests[k] for _, _, k in padded]
        tokens, index, lengths = _stacked([request.after for request in asked], self.shape.question)
        self.state = lanes.ask(
            self.model, self.params, self.shape, self.state, _numbers(row for row, _, _ in padded),
            _numbers(lane for _, lane, _ in padded), tokens, lengths, index, _numbers(r.limit for r in asked),
            keys[[k for _, _, k in padded]], np.array([r.temperature for r in asked], np.float32), self.stops,
            sampled=_sampled(requests))


def _groups(requests: Sequence[Request]) -> list[collections.deque[int]]:
    groups: dict[Any, collections.deque[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.group, collections.deque()).append(index)
    return list(groups.values())


def _keys(requests: Sequence[Request], seed: int) -> np.ndarray:
    key = jax.random.key(seed)
    if not _sampled(requests):
        return np.zeros((len(requests), *jax.random.key_data(key).shape), np.uint32)
    numbers = np.array([request.number for request in requests], np.uint32)
    return np.asarray(jax.random.key_data(jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)))


def _sampled(requests: Sequence[Request]) -> bool:
    return any(request.temperature > 0 for request in requests)


def _numbers(values: Any) -> Int[np.ndarray, N]:
    return np.fromiter(values, np.int32)


def _stacked(parts: Sequence[Encoded], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, image_index, lengths) of prompts' parts, padded to `width`."""
    tokens, index = np.zeros((len(parts), width), np.int32), np.full((len(parts), width), -1, np.int32)
    for row, part in enumerate(parts):
        tokens[row, :part.length], index[row, :part.length] = part.tokens, part.image_index
    return tokens, index, _numbers(part.length for part in parts)
