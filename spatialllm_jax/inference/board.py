"""Which question goes where: pictures into rows, their questions into lanes, whenever some are free.

One loop serves both ways of asking: `Board.answer` runs a closed list of requests (`launch.evaluate`), `inference.live`
adds requests as they arrive (`launch.serve`). What is answered never depends on it.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from spatialllm_jax.data.chat import Encoded
from spatialllm_jax.inference import lanes, reading
from spatialllm_jax.models.spatialllm import SpatialLLM
from spatialllm_jax.parallel.rules import MESH_AXES

# Pictures and questions are taken up so many at a time, by programs of about that size.
_BEGIN, _ASK = 8, 16
_OPEN, _CLOSED = 4, 8   # one lane in so many is free when others are taken up: as they arrive; if they are all there
_READ = 512             # tokens of questions that are read side by side, at a time, if a row has no more
MOST_READ = 1024        # of a row
# Prompts are padded to these widths where requests arrive one by one, and to the most that there may be.
_WIDTHS = (64, 256)
_WARM_TURNS = 4
_WORD = 1 << 32
_NOBODY = object()      # the group of a row that holds no picture yet

Visual = Callable[[Sequence[Any]], jax.Array]


@dataclasses.dataclass(frozen=True)
class Request:
    """One answer to be generated.

    Attributes:
        group: equal for requests with the same `before`, whose keys and values are then made once.
        before, after: the prompt up to its picture's end, and the rest, which has a token at least.
        limit: tokens of the answer, at most.
        temperature: 0 for the likeliest tokens.
        top_p: draws come from the likeliest tokens that together have this probability.
        seed, number: what the draws of this request come from.
    """

    group: Any
    before: Encoded
    after: Encoded
    limit: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    number: int = 0

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.before.length + self.after.length

    def whole(self, group: Any) -> Request:
        """The same with nothing before, in a group of its own: its picture is read with the question."""
        return dataclasses.replace(self, group=group, before=self.before.part(slice(0)),
                                   after=self.before.joined(self.after))


@dataclasses.dataclass(frozen=True)
class Event:
    """What became of a request: tokens that are new, and whether they are the last."""

    ticket: Any
    tokens: list[int]
    ended: bool


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The programs that take up pictures and rows of questions: so many at a time, so many tokens wide, ascending.

    What is fewer or shorter is padded. Every size is compiled with every width of its kind.

    Attributes:
        beside: questions in a row, at most.
    """

    pictures: tuple[int, ...]
    prefixes: tuple[int, ...]
    questions: tuple[int, ...]
    widths: tuple[int, ...]
    beside: int = 1


def one_size(shape: lanes.Shape) -> Sizes:
    """For requests that are all there: few programs, each full nearly always, as they take up what `Board.step` waits
    for."""
    if shape.read:
        rows, width, beside = max(1, _READ // shape.read), shape.read, shape.lanes
    else:
        rows, width, beside = min(_ASK, _share(shape.rows * shape.lanes)), shape.question, 1
    # Where rows are split over devices, no device is left without one.
    mesh = jax.sharding.get_abstract_mesh().shape
    ways = math.prod(mesh.get(axis, 1) for axis in MESH_AXES["batch"])
    pictures, rows = (-(-size // ways) * ways for size in (min(_BEGIN, _share(shape.rows)), rows))
    return Sizes((pictures,), (shape.prefix,), (rows,), (width,), beside)


def _share(lanes: int, one_in: int = _CLOSED) -> int:
    """So many lanes have to be free before others are taken up, while some wait."""
    return max(1, lanes // one_in)


def any_size(shape: lanes.Shape) -> Sizes:
    """For requests that arrive one by one: nobody waits for the padding of seven others, or for a long prompt's."""
    def ladder(few: Sequence[int], most: int) -> tuple[int, ...]:
        return (*(size for size in few if size < most), most)

    # Before its questions a prompt has its picture, or next to nothing.
    return Sizes(ladder((1,), min(_BEGIN, shape.rows)), ladder(_WIDTHS[:1], shape.prefix),
                 ladder((1,), min(_BEGIN, shape.rows * shape.lanes)), ladder(_WIDTHS, shape.question))


@dataclasses.dataclass
class _Seat:
    """A request in a lane, or waiting for one; `told` of its tokens were in events."""

    ticket: Any
    request: Request
    arrival: int
    told: int = 0


class _Row(NamedTuple):
    """Questions to be read side by side: `families` of those `asked` on the picture in `row`, each with its lane."""

    row: int
    asked: Sequence[tuple[int, _Seat]]
    families: Sequence[reading.Family]

    @property
    def questions(self) -> list[Encoded]:
        return [seat.request.after for _, seat in self.asked]


@dataclasses.dataclass
class Board:
    """Lanes, who is in them, and who waits.

    Attributes:
        open: requests arrive while others are answered: a few are taken up by small programs, first tokens are told at
            once, a picture's questions may take several rows, and rows keep their picture for questions to come.
    """

    model: SpatialLLM
    params: Any
    shape: lanes.Shape
    stops: Int[np.ndarray, N]
    state: lanes.State
    open: bool = False

    def __post_init__(self) -> None:
        self.sizes = any_size(self.shape) if self.open else one_size(self.shape)
        self.seats: dict[tuple[int, int], _Seat] = {}
        self.waiting: dict[Any, collections.deque[_Seat]] = {}
        self._groups: list[Any] = [_NOBODY] * self.shape.rows       # whose picture a row holds
        self._used = [0] * self.shape.rows                          # when it was last asked about
        self._left: list[tuple[int, int]] = []
        self._clock = itertools.count(1)

    def answer(self, requests: Sequence[Request], visual: Visual, done: Callable[[int, list[int]], None]) -> None:
        """Runs all requests.

        Args:
            visual: visual tokens `[G, V, D]` of the pictures of these requests, given by index.
            done: told a request's index and its tokens, as soon as it has ended.
        """
        self._groups = [_NOBODY] * self.shape.rows      # groups are this call's own
        said: list[list[int]] = [[] for _ in requests]
        for index, request in enumerate(requests):
            self.add(index, request)
        while self.busy:
            for event in itertools.chain.from_iterable(self.step(visual, self.shape.new)):
                said[event.ticket] += event.tokens
                if event.ended:
                    done(event.ticket, said[event.ticket])

    @property
    def busy(self) -> bool:
        """Whether anybody is answered or waits."""
        return bool(self.seats or self.waiting)

    def add(self, ticket: Hashable, request: Request) -> None:
        """Has a request wait for a lane; events name it by `ticket`."""
        if not self.shape.prefix:
            request = request.whole(ticket)
        self.waiting.setdefault(request.group, collections.deque()).append(_Seat(ticket, request, next(self._clock)))

    def cancel(self, ticket: Hashable) -> None:
        """Forgets a request, whatever its state: there will be no more events, and its lane is free."""
        for place, seat in self.seats.items():
            if seat.ticket == ticket:
                del self.seats[place]
                self._left.append(place)
                return
        for group, queue in self.waiting.items():
            for seat in queue:
                if seat.ticket == ticket:
                    queue.remove(seat)
                    if not queue:
                        del self.waiting[group]
                    return

    def step(self, visual: Visual, steps: int) -> Iterator[list[Event]]:
        """Takes up who waits, then goes on with all answers by up to `steps` tokens; yields events as they are known.

        Args:
            visual: visual tokens `[G, V, D]` of the pictures of requests, given by ticket.
        """
        if self._left:
            left = np.zeros((self.shape.rows, self.shape.lanes), bool)
            left[tuple(np.array(self._left).T)] = True
            self.state, self._left = lanes.release(self.state, left), []
        if self._take_up(visual) and self.open:
            yield self._events()
        if not self.seats:
            return
        self.state = lanes.advance(self.model, self.params, self.shape, self.state, self.stops,
                                   np.int32(self._enough()), np.int32(steps),
                                   sampled=_sampled(seat.request for seat in self.seats.values()))
        yield self._events()

    def warm(self, visual: Callable[[int], jax.Array]) -> Iterator[None]:
        """Compiles every program that `step` may need, one after the other; lanes stay as they are.

        Args:
            visual: any visual tokens `[G, V, D]` of so many pictures.
        """
        programs: tuple[Any, ...] = (lanes.begin, lanes.ask, lanes.advance, lanes.release)
        for turn in range(_WARM_TURNS):
            before = sum(program._cache_size() for program in programs)
            for _ in self._every_program(visual):
                if not turn:
                    yield
            # Where the lanes' arrays lie is known only when they come out of a program: what was compiled for new ones
            # is compiled again, for the ones that there will be.
            if sum(program._cache_size() for program in programs) == before:
                break
        jax.block_until_ready(self.state)

    def _every_program(self, visual: Callable[[int], jax.Array]) -> Iterator[None]:
        text = np.zeros(1, np.int32)
        dummy = Encoded(text, text > 0, text, text, text - 1, ())
        nowhere = self.shape.rows
        for size, width in itertools.product(self.sizes.pictures, self.sizes.prefixes):
            self._begin([(nowhere, _Seat(None, Request(None, dummy, dummy, 1), 0))], size, width,
                        lambda tickets: visual(len(tickets)))
            yield
        for sampled in (False, True):
            seat = _Seat(None, Request(None, dummy, dummy, 1, float(sampled)), 0)
            for size, width in itertools.product(self.sizes.questions, self.sizes.widths):
                self._ask(_rows([(nowhere, self.shape.lanes, seat)], self.sizes), size, width,
                          lambda tickets: visual(len(tickets)))
                yield
            self.state = lanes.advance(self.model, self.params, self.shape, self.state, self.stops, np.int32(1),
                                       np.int32(1), sampled=sampled)
            yield
        self.state = lanes.release(self.state, np.zeros((self.shape.rows, self.shape.lanes), bool))

    def _enough(self) -> int:
        """So many free lanes end a `step`: all, or those that are taken up at a time by others who wait."""
        busy, every = len(self.seats), self.shape.rows * self.shape.lanes
        if not self.waiting:
            return every
        if self.open or self.shape.lanes > 1:       # some may be free for want of questions on their picture
            return every - busy + _share(busy, _OPEN if self.open else _CLOSED)
        return max(every - busy + 1, _share(every))

    def _take_up(self, visual: Visual) -> bool:
        """Gives lanes to those who wait; whether there were any."""
        free = self.shape.rows * self.shape.lanes - len(self.seats)
        if self.open and free < _share(len(self.seats), _OPEN) and sum(map(len, self.waiting.values())) > free:
            return False        # more than places: by the quarter, as `step` ends
        fresh, asked = self._placed()
        if self.shape.prefix:
            for part, size, width in _parts(fresh, lambda one: one[1].request.before.length, self.sizes.pictures,
                                            self.sizes.prefixes):
                self._begin(part, size, width, visual)
        for rows, size, width in _parts(_rows(asked, self.sizes), lambda row: reading.read(row.families),
                                        self.sizes.questions, self.sizes.widths):
            self._ask(rows, size, width, visual)
        return bool(asked)

    def _placed(self) -> tuple[list[tuple[int, _Seat]], list[tuple[int, int, _Seat]]]:
        """(pictures that go into rows, questions that go into lanes): first where their picture is."""
        free = {row: [lane for lane in range(self.shape.lanes) if (row, lane) not in self.seats]
                for row in range(self.shape.rows)}
        fresh: list[tuple[int, _Seat]] = []
        asked: list[tuple[int, int, _Seat]] = []

        def fill(row: int, group: Any) -> None:
            queue = self.waiting[group]
            while queue and free[row]:
                lane, seat = free[row].pop(0), queue.popleft()
                self.seats[row, lane] = seat
                asked.append((row, lane, seat))
            self._used[row] = next(self._clock)
            if not queue:
                del self.waiting[group]

        # Nobody is overtaken for ever by questions on a picture that happens to be there.
        strangers = [queue[0].arrival for group, queue in self.waiting.items() if group not in self._groups]
        patience = min(strangers, default=0) + 4 * self.shape.rows * self.shape.lanes
        for row, group in enumerate(self._groups):
            if free[row] and group in self.waiting and not (
                    self.open and strangers and self.waiting[group][0].arrival > patience):
                fill(row, group)
        rows = sorted((row for row in free if len(free[row]) == self.shape.lanes), key=self._used.__getitem__)
        if not self.open and len(strangers) > len(rows) >= (size := self.sizes.pictures[-1]):
            del rows[len(rows) // size * size:]     # no program for a few: they wait for others
        for group in sorted(self.waiting, key=lambda group: self.waiting[group][0].arrival):
            while rows and group in self.waiting and (self.open or group not in self._groups):
                row = rows.pop(0)
                self._groups[row] = group
                fresh.append((row, self.waiting[group][0]))
                fill(row, group)
        return fresh, asked

    def _begin(self, pictures: Sequence[tuple[int, _Seat]], size: int, width: int, visual: Visual) -> None:
        padded = [*pictures, *[(self.shape.rows, pictures[0][1])] * (size - len(pictures))]
        tokens, index, lengths = _stacked([seat.request.before for _, seat in padded], width)
        self.state = lanes.begin(self.model, self.params, self.shape, self.state, _numbers(row for row, _ in padded),
                                 tokens, lengths, index, visual([seat.ticket for _, seat in padded]))

    def _ask(self, rows: Sequence[_Row], size: int, width: int, visual: Visual) -> None:
        padded = [*rows, *[_Row(self.shape.rows, [], [])] * (size - len(rows))]
        beside = (size, self.sizes.beside)
        into, limits = np.full(beside, self.shape.lanes, np.int32), np.ones(beside, np.int32)
        seeds, numbers = np.zeros((2, *beside), np.uint32)
        temperature, top_p = np.zeros(beside, np.float32), np.ones(beside, np.float32)
        for place, row in enumerate(padded):
            for k, member in enumerate(reading.members(row.families)):
                lane, seat = row.asked[member]
                request = seat.request
                into[place, k], limits[place, k] = lane, request.limit
                seeds[place, k], numbers[place, k] = request.seed % _WORD, request.number % _WORD
                temperature[place, k], top_p[place, k] = request.temperature, request.top_p
        laid = [reading.laid_out(row.questions, row.families, width, beside[1], min(width, self.shape.question))
                for row in padded]
        tokens, offset, branch, index, source, lengths = map(np.stack, zip(*laid, strict=True))
        # With no picture before it, a row has one question.
        own = None if self.shape.prefix else visual([(row.asked or rows[0].asked)[0][1].ticket for row in padded])
        sampled = bool(temperature.any())
        keys = lanes.request_keys(seeds, numbers) if sampled else np.zeros((*beside, *self.state.key.shape[2:]),
                                                                           np.uint32)
        self.state = lanes.ask(
            self.model, self.params, self.shape, self.state, _numbers(row.row for row in padded), tokens, offset,
            branch, index, own, into, source, lengths, limits, keys, temperature, top_p, self.stops, sampled=sampled)

    def _events(self) -> list[Event]:
        """What is new in the lanes; who has ended leaves them."""
        active, made, out = jax.device_get((self.state.active, self.state.made, self.state.out))
        events = []
        for place, seat in list(self.seats.items()):
            ended = not active[place]
            if ended or made[place] > seat.told:
                events.append(Event(seat.ticket, out[place][seat.told:made[place]].tolist(), ended))
                seat.told = int(made[place])
            if ended:
                del self.seats[place]
        return events


def parts(count: int, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, size) of the programs that take up `count` things: a few one by one, many padded to the most."""
    start = 0
    while start < count:
        size = sizes[-1] if 2 * (count - start) > sizes[-1] else sizes[0]
        yield start, size
        start += size


def _parts(items: Sequence[Any], length: Callable[[Any], int], sizes: Sequence[int], widths: Sequence[int],
           ) -> Iterator[tuple[Sequence[Any], int, int]]:
    """(items, size of their program, its width): the long ones apart."""
    shorter = 0
    for width in widths:
        alike = [item for item in items if shorter < length(item) <= width or length(item) == shorter == 0]
        shorter = width
        for start, size in parts(len(alike), sizes):
            yield alike[start:start + size], size, width


def _rows(asked: Sequence[tuple[int, int, _Seat]], sizes: Sizes) -> list[_Row]:
    """Rows of questions; those on one picture share rows as far as they fit."""
    found: list[_Row] = []
    by_row: dict[int, list[tuple[int, _Seat]]] = {}
    for row, lane, seat in asked:
        by_row.setdefault(row, []).append((lane, seat))
    for row, own in by_row.items():
        for part in [own] if sizes.beside > 1 else [[one] for one in own]:
            whole = _Row(row, part, [])
            found += [whole._replace(families=families) for families in reading.side_by_side(
                reading.families(whole.questions), whole.questions, sizes.widths[-1], sizes.beside)]
    return found


def _sampled(requests: Iterable[Request]) -> bool:
    return any(request.temperature > 0 for request in requests)


def _numbers(values: Any) -> Int[np.ndarray, N]:
    return np.fromiter(values, np.int32)


def _stacked(parts: Sequence[Encoded], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, image_index, lengths) of prompts' parts, padded to `width`."""
    tokens, index = np.zeros((len(parts), width), np.int32), np.full((len(parts), width), -1, np.int32)
    for row, part in enumerate(parts):
        tokens[row, :part.length], index[row, :part.length] = part.tokens, part.image_index
    return tokens, index, _numbers(part.length for part in parts)
