"""Generation in lanes: pictures in rows, questions on them in lanes, one cache for all, refilled while it runs.

A row of the cache holds what stands before every question on a picture (system text and visual tokens), computed once,
and behind it a piece for each of its lanes: a question and its answer so far. Lanes are branches (`models.attention`):
they see their row's picture and themselves. One decoding step moves all lanes of all rows on by a token, and reads a
picture's keys once for all questions on it. Three programs do it all: `begin` a picture, `ask` a question, `advance`;
a fourth, `release`, frees lanes whose answers nobody waits for any more.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from spatialllm_jax.models.attention import Mask
from spatialllm_jax.models.cache import Cache, init_cache
from spatialllm_jax.models.spatialllm import SpatialLLM


@dataclasses.dataclass(frozen=True)
class Shape:
    """The static sizes of a set of lanes; each is one program.

    Attributes:
        rows: pictures at a time.
        lanes: questions at a time on each.
        prefix: tokens before a question, at most: system text and picture. 0 where no two questions share them: they
            are then read with the question, and nothing is to `begin`.
        question, new: tokens of a question and of an answer, at most.
        read: tokens of the row in which questions on one picture are read side by side, more than `question`; 0 for
            one question to a row.
    """

    rows: int
    lanes: int
    prefix: int
    question: int
    new: int
    read: int = 0

    @property
    def piece(self) -> int:
        """Slots of a lane."""
        return self.question + self.new

    @property
    def context(self) -> int:
        """Tokens of a prompt, at most."""
        return self.prefix + self.question

    @property
    def slots(self) -> int:
        """Slots of a row."""
        return self.prefix + self.lanes * self.piece


@flax.struct.dataclass
class State:
    """R rows of K lanes; S slots as `Shape` lays them out.

    Attributes:
        cache: keys and values.
        owner: whose a slot is: 0 nobody's, 1 the picture's, k + 2 lane k's.
        prefix: tokens before the questions.
        visual: the picture's visual tokens.
        token, position, slot: the lane's newest token, its rotary position, and where its keys will go.
        left: tokens that may still follow it.
        active: whether the lane still answers.
        out, made: the answer so far, -1 behind it, and its length.
        key: random key data of the lane's request.
        temperature: 0 takes the likeliest token.
        top_p: draws come from the likeliest tokens that together have this probability.
    """

    cache: Cache
    owner: Int[Array, "R S"]
    prefix: Int[Array, R]
    visual: Float[Array, "R V D"]
    token: Int[Array, "R K"]
    position: Int[Array, "R K"]
    slot: Int[Array, "R K"]
    left: Int[Array, "R K"]
    active: Bool[Array, "R K"]
    out: Int[Array, "R K N"]
    made: Int[Array, "R K"]
    key: Array
    temperature: Float[Array, "R K"]
    top_p: Float[Array, "R K"]


@functools.partial(jax.jit, static_argnames=("model", "shape", "num_visual"))
def empty(model: SpatialLLM, shape: Shape, num_visual: int) -> State:
    """Lanes without a picture or a question."""
    c, lanes = model.config, (shape.rows, shape.lanes)
    dtype = jnp.dtype(c.dtype)

    def zeros(*size: int, dtype: Any = jnp.int32) -> Array:
        return jnp.zeros(size, dtype)

    return State(
        cache=init_cache(c.llm, shape.rows, shape.slots, dtype, model.listed), owner=zeros(shape.rows, shape.slots),
        prefix=zeros(shape.rows), visual=zeros(shape.rows, num_visual, c.llm.width, dtype=dtype),
        token=zeros(*lanes), position=zeros(*lanes), slot=zeros(*lanes), left=zeros(*lanes),
        active=zeros(*lanes, dtype=bool), out=zeros(*lanes, shape.new) - 1, made=zeros(*lanes),
        key=zeros(*lanes, *jax.random.key_data(jax.random.key(0)).shape, dtype=jnp.uint32),
        temperature=zeros(*lanes, dtype=jnp.float32), top_p=zeros(*lanes, dtype=jnp.float32) + 1)


@functools.partial(jax.jit, static_argnames=("model", "shape"), donate_argnames="state")
def begin(model: SpatialLLM, params: Any, shape: Shape, state: State, rows: Int[Array, G],
          tokens: Int[Array, "G P"], lengths: Int[Array, G], image_index: Int[Array, "G P"],
          visual: Float[Array, "G V D"]) -> State:
    """Puts G pictures into rows whose lanes are all free.

    Args:
        rows: of each picture; `shape.rows` for one that is none.
        tokens, lengths: what stands before the questions, padded to P, at most `shape.prefix`.
        image_index, visual: see `SpatialLLM.embed`.
    """
    count, width = tokens.shape
    index = jnp.broadcast_to(jnp.arange(width), (count, width))
    valid = (index < lengths[:, None]).astype(jnp.int32)
    mask = Mask(valid, valid, 0 * index, 0 * index, index, index)
    cache = init_cache(model.config.llm, count, width, state.cache.dtype, model.listed)
    prefilled: Any = model.apply({"params": params}, tokens, index, mask, cache, 0, visual, image_index,
                                 method="decode")
    owner = jnp.pad(valid, [(0, 0), (0, shape.slots - width)])

    return dataclasses.replace(
        state, cache=state.cache.begun(rows, prefilled[1]), owner=state.owner.at[rows].set(owner, mode="drop"),
        prefix=state.prefix.at[rows].set(lengths, mode="drop"),
        visual=state.visual.at[rows].set(visual.astype(state.visual.dtype), mode="drop"))


@functools.partial(jax.jit, static_argnames=("model", "shape", "sampled"), donate_argnames="state")
def ask(model: SpatialLLM, params: Any, shape: Shape, state: State, rows: Int[Array, G], tokens: Int[Array, "G Q"],
        offset: Int[Array, "G Q"], branch: Int[Array, "G Q"], image_index: Int[Array, "G Q"],
        visual: Float[Array, "G V D"] | None, lanes: Int[Array, "G N"],
        source: Int[Array, "G N P"], lengths: Int[Array, "G N"], limits: Int[Array, "G N"], key: Array,
        temperature: Float[Array, "G N"], top_p: Float[Array, "G N"], stops: Int[Array, "*"], *, sampled: bool,
        ) -> State:
    """Puts up to N questions on each of G pictures into free lanes and picks the first token of each answer.

    Args:
        rows: of the picture that each row of questions is about; a picture may have several.
        tokens, offset, branch: what stands behind the picture, questions side by side; each token's place in its
            question, and its branch of the row (`models.branches`), 0 for padding.
        image_index: of visual tokens among them (a caption's prompt ends in one).
        visual: see `SpatialLLM.embed`; None for those that were begun with.
        lanes: of each question; `shape.lanes` for one that is none.
        source, lengths: where a question's tokens stand in its row, and how many they are. Questions that begin alike
            have tokens in common.
        limits: tokens of the answer, from 1 to `shape.new`.
        key: random key data, one per question.
        sampled: whether any temperature is not 0.
    """
    width = tokens.shape[1]
    valid = (branch > 0).astype(jnp.int32)
    # The picture, side by side with the questions, which do not see each other: branches of the row.
    cache = state.cache.beginning(rows, shape.prefix, width)
    pictured = state.owner[rows, :shape.prefix]
    slot = jnp.broadcast_to(jnp.arange(shape.prefix + width), (len(rows), shape.prefix + width))
    mask = Mask(valid, jnp.concatenate([pictured, valid], axis=1), branch,
                jnp.concatenate([0 * pictured, branch], axis=1), slot[:, shape.prefix:], slot)
    positions = state.prefix[rows][:, None] + offset
    visual = state.visual[rows] if visual is None else visual
    prefilled: Any = model.apply({"params": params}, tokens, positions, mask, cache, shape.prefix, visual, image_index,
                                 method="decode")
    hidden, cache = prefilled
    ends = jnp.take_along_axis(source, lengths[:, :, None] - 1, axis=2)
    last = jnp.take_along_axis(hidden, ends, axis=1)
    token = _pick(model, params, last, key, jnp.zeros_like(lengths), temperature, top_p, sampled)

    row, start = rows[:, None], shape.prefix + lanes * shape.piece
    places = start[:, :, None] + jnp.arange(shape.piece)
    owner = jnp.where(jnp.arange(shape.piece) < lengths[:, :, None], lanes[:, :, None] + 2, 0)
    answer = jnp.full((*lanes.shape, shape.new), -1, jnp.int32).at[:, :, 0].set(token)
    asked = jnp.arange(source.shape[2])
    kept = jnp.where(asked < lengths[:, :, None], start[:, :, None] + asked, shape.slots)
    group = jnp.arange(len(rows))[:, None, None]

    def put(ours: Array, new: Array) -> Array:
        return ours.at[row, lanes].set(new, mode="drop")

    return dataclasses.replace(
        state, cache=state.cache.copied(row[:, :, None], kept, cache, group, shape.prefix + source),
        owner=state.owner.at[row[:, :, None], places].set(owner, mode="drop"), token=put(state.token, token),
        position=put(state.position, state.prefix[row] + lengths), slot=put(state.slot, start + lengths),
        left=put(state.left, limits - 1), active=put(state.active, ~jnp.isin(token, stops) & (limits > 1)),
        out=put(state.out, answer), made=put(state.made, jnp.ones_like(lengths)), key=put(state.key, key),
        temperature=put(state.temperature, temperature), top_p=put(state.top_p, top_p))


@functools.partial(jax.jit, static_argnames=("model", "shape", "sampled"), donate_argnames="state")
def advance(model: SpatialLLM, params: Any, shape: Shape, state: State, stops: Int[Array, "*"],
            enough: Int[Array, ""], steps: Int[Array, ""], *, sampled: bool) -> State:
    """Goes on with all active lanes until at least `enough` lanes are free, or for `steps` tokens."""
    lane = jnp.broadcast_to(jnp.arange(shape.lanes), (shape.rows, shape.lanes))
    slot = jnp.broadcast_to(jnp.arange(shape.slots), (shape.rows, shape.slots))
    row = jnp.arange(shape.rows)[:, None]

    def unfinished(carry: tuple[Array, State]) -> Array:
        step, now = carry
        return (step < steps) & now.active.any() & ((~now.active).sum() < enough)

    def one(carry: tuple[Array, State]) -> tuple[Array, State]:
        step, now = carry
        place = jnp.where(now.active, now.slot, shape.slots)
        owner = now.owner.at[row, place].set(lane + 2, mode="drop")
        mask = Mask(jnp.ones_like(lane), (owner > 0).astype(jnp.int32), lane + 1, jnp.maximum(owner - 1, 0), now.slot,
                    slot)
        decoded: Any = model.apply({"params": params}, now.token, now.position, mask, now.cache, place,
                                   method="decode")
        hidden, cache = decoded
        token = _pick(model, params, hidden, now.key, now.made, now.temperature, now.top_p, sampled)
        token = jnp.where(now.active, token, now.token)
        out = now.out.at[row, lane, jnp.where(now.active, now.made, shape.new)].set(token, mode="drop")
        moved = now.active.astype(jnp.int32)
        left = now.left - moved
        return step + 1, dataclasses.replace(
            now, cache=cache, owner=owner, token=token, position=now.position + moved, slot=now.slot + moved, left=left,
            active=now.active & ~jnp.isin(token, stops) & (left > 0), out=out, made=now.made + moved)

    return jax.lax.while_loop(unfinished, one, (jnp.int32(0), state))[1]


@functools.partial(jax.jit, donate_argnames="state")
def release(state: State, left: Bool[Array, "R K"]) -> State:
    """Ends the answers of the lanes that were `left` by those who asked."""
    return dataclasses.replace(state, active=state.active & ~left)


@jax.jit
def request_keys(seeds: UInt32[Array, "*"], numbers: UInt32[Array, "*"]) -> Array:
    """Random key data of requests: what is drawn for one comes from its seed and its number alone."""
    return jax.random.key_data(jnp.vectorize(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))(
        seeds, numbers))


def _pick(model: SpatialLLM, params: Any, hidden: Float[Array, "*lanes D"], key: Array, made: Int[Array, "*lanes"],
          temperature: Float[Array, "*lanes"], top_p: Float[Array, "*lanes"], sampled: bool) -> Int[Array, "*lanes"]:
    """The next token of every lane; drawn by its request's key and its own place in the answer, whoever else runs."""
    logits: Any = model.apply({"params": params}, hidden, method="logits")
    likeliest = logits.argmax(-1).astype(jnp.int32)
    if not sampled:
        return likeliest
    scaled = logits / jnp.maximum(temperature, 1e-6)[..., None]
    # Sorting the vocabulary is dear where it is large: only if somebody wants its head alone.
    scaled = jax.lax.cond((top_p < 1).any(), lambda: _nucleus(scaled, top_p), lambda: scaled)

    def draw(key: Array, made: Array, scaled: Array) -> Array:
        own = jax.random.fold_in(jax.random.wrap_key_data(key), made)
        return jax.random.categorical(own, scaled).astype(jnp.int32)

    for _ in range(made.ndim):
        draw = jax.vmap(draw)
    return jnp.where(temperature > 0, draw(key, made, scaled), likeliest)


def _nucleus(logits: Float[Array, "*lanes V"], top_p: Float[Array, "*lanes"]) -> Float[Array, "*lanes V"]:
    """Logits without those behind the likeliest tokens whose probabilities reach `top_p` (Holtzman et al., 2020);
    the likeliest stays in any case."""
    order = jnp.argsort(-logits, axis=-1)
    shares = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    kept = (before < top_p[..., None]) | (top_p[..., None] >= 1) | (jnp.arange(logits.shape[-1]) == 0)
    kept = jnp.put_along_axis(jnp.zeros(logits.shape, bool), order, kept, axis=-1, inplace=False)
    return jnp.where(kept, logits, -jnp.inf)
