"""An engine that answers requests as they arrive: many at a time, piece by piece, each as if it were alone."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from spatialllm_jax.errors import UserError
from spatialllm_jax.inference import lanes
from spatialllm_jax.inference.board import Request
from spatialllm_jax.inference.engine import Engine
from spatialllm_jax.inference.prompts import Picture, Prompt, open_prompt
from spatialllm_jax.inference.words import Words

MOST_OPTIONS = 16       # options of one prompt; scoring has one program for all numbers of them
_IMAGES = 8             # images per encoder call, when many arrive together
_PACE = 0.05            # seconds between two pieces of an answer
_MOST_STEPS = 32        # tokens between two pieces


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How an answer is drawn and where it ends.

    Attributes:
        max_tokens: of the answer, its end mark included.
        temperature, top_p, seed: see `board.Request`.
        stop: texts that end it and are no part of it.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Ready:
    """A prompt made into arrays: all that can be done before it is its turn, on any thread.

    Attributes:
        pixels: what the model sees of the picture `[n, S, S, 3]`; None for text alone.
    """

    prompt: Prompt
    sampling: Sampling
    request: Request
    pixels: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Update:
    """More of an answer.

    Attributes:
        ticket: as given to `Live.add`.
        text: what follows the text so far.
        finish: "" while more will come, else why there is none: "stop" or "length".
        tokens: of the answer so far.
    """

    ticket: Any
    text: str
    finish: str
    tokens: int


def check_lanes(new: int, concurrent: int, per_picture: int) -> None:
    """What `lanes_for` refuses whatever the engine, for those who want to know before they load one."""
    for flag, value in (("--max-new-tokens", new), ("--concurrent", concurrent), ("--per-picture", per_picture)):
        if value < 1:
            raise UserError(f"{flag} {value} must be at least 1")
    if concurrent % per_picture:
        raise UserError(f"--concurrent {concurrent} must be a multiple of --per-picture {per_picture}")


def lanes_for(engine: Engine, context: int, new: int, concurrent: int, per_picture: int) -> lanes.Shape:
    """Lanes for prompts of up to `context` tokens (0: the picture's and 512 more).

    Args:
        new: tokens of an answer, at most.
        concurrent: answers at a time.
        per_picture: of them on one picture, sharing its keys and values.

    Raises:
        UserError: a size that cannot be; names the flags of `launch.serve`.
    """
    check_lanes(new, concurrent, per_picture)
    picture = engine.longest_layout()
    opening = open_prompt(engine.tokenizer, engine.settings, "?", picture).image_index
    prefix = -(-(int(np.flatnonzero(opening >= 0)[-1]) + 1) // 16) * 16
    context = context or prefix + 512
    if context < prefix + 16:
        raise UserError(f"--context {context} is too short: the picture and what stands before it take up to {prefix} "
                        f"tokens; give at least {prefix + 16}")
    return lanes.Shape(concurrent // per_picture, per_picture, prefix, context - prefix, new)


class Live:
    """Answers under way. All methods but `ready` belong to one thread."""

    def __init__(self, engine: Engine, shape: lanes.Shape):
        """Lanes of `shape` on the engine's devices."""
        self.engine = dataclasses.replace(engine, image_batches=(1, _IMAGES))
        self._scorer = dataclasses.replace(self.engine, batch_size=1)
        self.shape = shape
        self._seconds = _PACE       # per token, as last seen
        self.reset()

    def reset(self) -> None:
        """Empty lanes; whoever had one or waited is forgotten."""
        self._known: dict[Any, tuple[Ready, Words]] = {}
        self._board: Any = None     # its memory first
        with self.engine.devices():
            self._board = self.engine.board(self.shape, open=True)

    @property
    def busy(self) -> bool:
        """Whether anybody is answered or waits."""
        return self._board.busy

    @property
    def running(self) -> int:
        """Answers that hold a lane."""
        return len(self._board.seats)

    def ready(self, prompt: Prompt, sampling: Sampling) -> Ready:
        """A prompt as arrays.

        Raises:
            UserError: the prompt is too long, or has several pictures, or its picture is none
                (`data.images.ImageError`).
        """
        if prompt.more:
            raise UserError("a conversation is about one picture; several are read by launch.evaluate alone")
        limit = min(sampling.max_tokens, self.shape.new)
        request = self.engine.request(prompt, limit, sampling.temperature, sampling.top_p, sampling.seed, self.shape)
        return Ready(prompt, sampling, request, self.engine.pixels(prompt) if prompt.pictured else None)

    def add(self, ticket: Hashable, ready: Ready) -> None:
        """Has a prompt answered; updates name it by `ticket`."""
        self._known[ticket] = ready, Words(self.engine.tokenizer, self.engine.stops, ready.sampling.stop)
        self._board.add(ticket, ready.request)

    def cancel(self, ticket: Hashable) -> None:
        """Forgets a prompt, whatever its state; there will be no more updates."""
        if self._known.pop(ticket, None) is not None:
            self._board.cancel(ticket)

    def step(self) -> Iterator[list[Update]]:
        """Takes up new prompts and goes on with all answers for a moment; yields updates as they are known."""
        with self.engine.devices():
            steps = int(np.clip(_PACE / self._seconds, 1, _MOST_STEPS))
            began = time.perf_counter()
            for events in self._board.step(self._visual, steps):
                updates, moved = [], 0
                for event in events:
                    words = self._known[event.ticket][1]
                    first = not words.count
                    moved = moved if first else max(moved, len(event.tokens))
                    text = words.add(event.tokens, event.ended)
                    if words.finish:
                        del self._known[event.ticket]
                        if not event.ended:
                            self._board.cancel(event.ticket)
                    if text or words.finish or first:       # the first token may be half a character
                        updates.append(Update(event.ticket, text, words.finish, words.count))
                spent, began = time.perf_counter() - began, time.perf_counter()
                if moved:       # else prompts were read
                    self._seconds = 0.5 * self._seconds + 0.5 * spent / moved
                yield updates
                began = time.perf_counter()     # what was done with them took time, too

    def score(self, ready: Ready) -> np.ndarray:
        """Log-likelihood of every option of a prompt; see `Engine.score`."""
        if len(ready.prompt.options) > MOST_OPTIONS:
            raise UserError(f"{len(ready.prompt.options)} options are more than {MOST_OPTIONS}")
        return self._scorer.score([ready.prompt], row_length=self.shape.context + self.shape.new,
                                  beside=MOST_OPTIONS, pixels=_pixels([ready]))[0]

    @property
    def waiting(self) -> int:
        """Answers that wait for a lane."""
        return len(self._known) - self.running

    @property
    def programs(self) -> int:
        """What `warm` yields for."""
        sizes = self._board.sizes
        return (len(self.engine.image_batches) + len(sizes.pictures) * len(sizes.prefixes)
                + 2 * (len(sizes.questions) * len(sizes.widths) + 1) + 1)

    def warm(self) -> Iterator[None]:
        """Compiles every program that may be needed, one after the other."""
        blank = Prompt("", None, "?", options=("a", "b"))
        with self.engine.devices():
            yield from self.engine.warm_encoders()
            yield from self._board.warm(lambda size: self.engine.visual([blank] * size))
        self.score(Ready(blank, Sampling(1), self.engine.request(blank, 1), None))
        yield

    def _visual(self, tickets: Sequence[Any]) -> jax.Array:
        prompts = [self._known[ticket][0] for ticket in tickets]
        return self.engine.visual([ready.prompt for ready in prompts], _pixels(prompts))


def _pixels(prompts: Sequence[Ready]) -> dict[Picture | None, np.ndarray]:
    return {ready.prompt.picture: ready.pixels for ready in prompts if ready.pixels is not None}
