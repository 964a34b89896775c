"""The key/value cache of a decoder, and how slots get in and out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from spatialllm_jax.models.config import LlamaConfig
from spatialllm_jax.parallel.rules import constrain


@flax.struct.dataclass
class Cache:
    """Keys (rotated) and values of S slots for every layer. Which slots are valid is the `Mask`'s business.

    Axes stand as the products of a few queries with a head's slots read them: scores sum over Dh, values over S. The
    layers of a scan are one array, `l` of them; layers that are listed (see `models.llama.Llama`) are an array each.
    """

    k: tuple[Float[Array, "l B K Dh S"], ...]
    v: tuple[Float[Array, "l B K S Dh"], ...]

    @property
    def length(self) -> int:
        """S, the number of slots."""
        return self.v[0].shape[3]

    @property
    def dtype(self) -> Any:
        """Of keys and values."""
        return self.k[0].dtype

    def of(self, layer: Int[Array, ""] | int) -> tuple[Float[Array, "B S K Dh"], Float[Array, "B S K Dh"]]:
        """A layer's keys and values."""
        part, at = _place(layer)
        return rearrange(self.k[part][at], "b k d s -> b s k d"), rearrange(self.v[part][at], "b k s d -> b s k d")

    def written(self, layer: Int[Array, ""] | int, k: Float[Array, "B T K Dh"], v: Float[Array, "B T K Dh"],
                slots: Int[Array, ""] | Int[Array, "B T"] | int) -> Cache:
        """With a layer's new keys and values at the slots from `slots` on, or at those it lists (beyond S: nowhere)."""
        part, at = _place(layer)

        def one(parts: tuple[Array, ...], new: Array, keys: bool) -> tuple[Array, ...]:
            held, new = parts[part], new.astype(parts[part].dtype)
            if jnp.ndim(slots) == 0:
                new = rearrange(new, "b t k d -> 1 b k d t" if keys else "b t k d -> 1 b k t d")
                held = jax.lax.dynamic_update_slice(held, new, (at, 0, 0, 0, slots) if keys else (at, 0, 0, slots, 0))
            else:
                rows = jnp.arange(len(new))[:, None]
                held = held.at[at, rows, :, *_behind_heads(keys, slots)].set(new, mode="drop")
            return (*parts[:part], held, *parts[part + 1:])

        return Cache(one(self.k, k, True), one(self.v, v, False))

    def begun(self, rows: Int[Array, G], other: Cache) -> Cache:
        """With `other`, a cache of G rows, as the first slots of these rows (beyond B: nowhere)."""
        first = slice(other.length)
        return _both(lambda keys, ours, new: ours.at[:, rows, :, *_behind_heads(keys, first)].set(new, mode="drop"),
                     self, other)

    def beginning(self, rows: Int[Array, G], length: int, room: int) -> Cache:
        """A cache of G rows: the first slots of these, `length` of them, and `room` for others."""
        def one(keys: bool, ours: Array) -> Array:
            pads = [(0, 0), (0, room)] if keys else [(0, room), (0, 0)]
            return jnp.pad(ours[:, rows, :, *_behind_heads(keys, slice(length))], [(0, 0)] * 3 + pads)

        return _both(one, self)

    def copied(self, rows: Int[Array, "*n"], slots: Int[Array, "*n"], other: Cache, from_rows: Int[Array, "*n"],
               from_slots: Int[Array, "*n"]) -> Cache:
        """With slots of `other` in slots of this one, each in its row (beyond S or B: nowhere). Indices broadcast."""
        def one(keys: bool, ours: Array, new: Array) -> Array:
            pieces = new[:, from_rows, :, *_behind_heads(keys, from_slots)]
            return ours.at[:, rows, :, *_behind_heads(keys, slots)].set(pieces, mode="drop")

        return _both(one, self, other)


def init_cache(config: LlamaConfig, batch: int, length: int, dtype: Any = jnp.float32, listed: bool = False) -> Cache:
    """An empty cache of `length` slots for `batch` rows; `listed` as the `Llama` is."""
    layers = [1] * config.depth if listed else [config.depth]

    def empty(count: int, *axes: int) -> Array:
        shape = (count, batch, config.num_kv_heads, *axes)
        return constrain(jnp.zeros(shape, dtype), ("layers", "batch", "heads", None, None))

    return Cache(tuple(empty(count, config.head_dim, length) for count in layers),
                 tuple(empty(count, length, config.head_dim) for count in layers))


def _place(layer: Int[Array, ""] | int) -> tuple[int, Int[Array, ""] | int]:
    """Which array of a `Cache` a layer is in, and where in it."""
    return (layer, 0) if isinstance(layer, int) else (0, layer)


def _behind_heads(keys: bool, slots: Any) -> tuple[Any, ...]:
    """The index of these slots in the axes of keys, or of values, that follow the heads."""
    return (slice(None), slots) if keys else (slots,)


def _both(one: Callable[..., Array], *caches: Cache) -> Cache:
    """`one(whether these are keys, array of each cache)` for all arrays."""
    return Cache(*(tuple(one(name == "k", *arrays) for arrays in zip(*(getattr(c, name) for c in caches), strict=True))
                   for name in ("k", "v")))
