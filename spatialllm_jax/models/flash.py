"""Exact attention without its [T, S] scores: one kernel for GPUs (Triton) and TPUs (Mosaic), forward and backward.

The method is FlashAttention's (Dao et al., 2022; 2023): scores exist one tile at a time, softmax is normalised at the
end, and the backward pass makes the tiles again from the row's log-sum-exp. What is ours is the mask. The kernels are
told three facts per token (segment, branch, index; `attention.Mask`) and compare them tile by tile. So one kernel
serves packed rows, branches, caches, queries that hold a part of the row, and padding; and of every row of tiles only
those between the first and the last that may hold something visible are visited.

Inside, arrays are head-major, `[B, H, T, D]`; what there is one number of per token is a row, `[1, T]`, turned into a
column where a tile needs it. Scores and sums are float32; tiles are multiplied in the type of the inputs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from spatialllm_jax.models.branches import on_path

# Below any score, and far below where the running maximum starts: exp(INVISIBLE - NOTHING) is exactly 0, so that
# rows that have seen nothing yet need no second mask.
INVISIBLE, NOTHING = -1e30, -1e20
SEGMENT, BRANCH, INDEX = range(3)
_FAR = jnp.iinfo(jnp.int32).max


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How the kernels are laid out on a platform.

    Attributes:
        platform: "gpu", "tpu", or "cpu": interpreted, in the form of `like`.
        forward, dq, dkv: (block of its own side, block of the side that is looped over). The own side is that of the
            queries, for `dkv` that of the keys.
        warps, stages: of Triton's programs, forward; of its pipelines.
    """

    platform: str
    like: str = "gpu"
    forward: tuple[int, int] = (128, 64)
    dq: tuple[int, int] = (64, 64)
    dkv: tuple[int, int] = (64, 64)
    warps: int = 8
    stages: int = 2

    @property
    def mosaic(self) -> bool:
        """Whether this is the TPU's form of the kernels."""
        return "tpu" in (self.platform, self.like)


# GPU: at 128 channels per head the float32 sums and one tile of scores stay in the registers of 8 (4) warps. TPU: few
# large tiles, as a sequential machine likes them.
TILES = {"gpu": Tiles("gpu"), "tpu": Tiles("tpu", "tpu", (512, 512), (512, 512), (512, 512))}


def tiles_for(platform: str) -> Tiles:
    """The layout for a platform; other platforms than GPU and TPU interpret the GPU's, slowly."""
    return TILES.get(platform, Tiles("cpu"))


def forward(q: Float[Array, "B T H D"], k: Float[Array, "B S K D"], v: Float[Array, "B S K D"],
            q_facts: Int[Array, "B 3 T"], kv_facts: Int[Array, "B 3 S"], tiles: Tiles,
            ) -> tuple[Float[Array, "B T H D"], Float[Array, "B H T"]]:
    """Attention on one device, and the log-sum-exp of every query's visible scores.

    Args:
        q_facts, kv_facts: segment, branch and index of every token, in this order; see `attention.Mask`.
    """
    (batch, length, heads, width), group = q.shape, q.shape[2] // k.shape[2]
    own, other = _blocks(tiles.forward, length, k.shape[1], q.dtype, tiles)
    q, k, v = (_padded(x, block, tiles) for x, block in ((q, own), (k, other), (v, other)))
    q_facts, kv_facts = _padded_facts(q_facts, own), _padded_facts(kv_facts, other)
    grid = (batch, heads, q.shape[2] // own)
    out, lse = _call(
        functools.partial(_forward_kernel, scale=width ** -0.5, other=other, tiles=tiles), "flash_forward", grid, tiles,
        inputs=[(_visited(_tile_map(q_facts, kv_facts, own, other)), None),
                (q, _own_tile(own, q)), (k, _whole(k, group)), (v, _whole(v, group)),
                (q_facts, _own_facts(own)), (kv_facts, _whole_facts(kv_facts))],
        outputs=[(q.shape, q.dtype, _own_tile(own, q)),
                 ((batch, heads, 1, q.shape[2]), jnp.float32, _own_row(own))],
        warps=tiles.warps, products=2, pairs=batch * heads * length * k.shape[2])
    return _unpadded(out, length, width), lse[:, :, 0, :length]


def backward(q: Float[Array, "B T H D"], k: Float[Array, "B S K D"], v: Float[Array, "B S K D"],
             q_facts: Int[Array, "B 3 T"], kv_facts: Int[Array, "B 3 S"], out: Float[Array, "B T H D"],
             lse: Float[Array, "B H T"], d_out: Float[Array, "B T H D"], tiles: Tiles,
             ) -> tuple[Float[Array, "B T H D"], Float[Array, "B S K D"], Float[Array, "B S K D"]]:
    """Gradients of q, k and v, given what `forward` returned and the gradient of its first output."""
    (batch, length, heads, width), (_, slots, kv_heads, _) = q.shape, k.shape
    group, scale = heads // kv_heads, width ** -0.5
    delta = jnp.einsum("bthd,bthd->bht", out, d_out, preferred_element_type=jnp.float32)

    def laid_out(own: int, other: int, query_block: int, key_block: int) -> tuple[Array, ...]:
        rows = [jnp.pad(x, [(0, 0), (0, 0), (0, -length % query_block)])[:, :, None] for x in (lse, delta)]
        return (_padded(q, query_block, tiles), _padded(k, key_block, tiles), _padded(v, key_block, tiles),
                _padded(d_out, query_block, tiles), *rows,
                _padded_facts(q_facts, query_block), _padded_facts(kv_facts, key_block))

    own, other = _blocks(tiles.dq, length, slots, q.dtype, tiles)
    qs, ks, vs, ds, lses, deltas, q_row, kv_row = laid_out(own, other, own, other)
    dq, = _call(
        functools.partial(_dq_kernel, scale=scale, other=other, tiles=tiles), "flash_dq",
        (batch, heads, qs.shape[2] // own), tiles,
        inputs=[(_visited(_tile_map(q_row, kv_row, own, other)), None),
                (qs, _own_tile(own, qs)), (ks, _whole(ks, group)), (vs, _whole(vs, group)), (ds, _own_tile(own, ds)),
                (lses, _own_row(own)), (deltas, _own_row(own)),
                (q_row, _own_facts(own)), (kv_row, _whole_facts(kv_row))],
        outputs=[(qs.shape, q.dtype, _own_tile(own, qs))], warps=4, products=3, pairs=batch * heads * length * slots)

    own, other = _blocks(tiles.dkv, slots, length, q.dtype, tiles)
    qs, ks, vs, ds, lses, deltas, q_row, kv_row = laid_out(own, other, other, own)
    # The heads that share a key: a GPU's program goes through them; a TPU's grid does, adding up in place.
    steps = group if tiles.mosaic else 1
    ahead = group // steps
    query = pl.BlockSpec((None, ahead, *qs.shape[2:]), lambda b, h, i, g: (b, h * steps + g, 0, 0))
    row = pl.BlockSpec((None, ahead, 1, qs.shape[2]), lambda b, h, i, g: (b, h * steps + g, 0, 0))
    summed = jnp.float32 if steps > 1 else k.dtype
    dk, dv = _call(
        functools.partial(_dkv_kernel, scale=scale, other=other, group=ahead, steps=steps, tiles=tiles), "flash_dkv",
        (batch, kv_heads, ks.shape[2] // own, steps), tiles,
        inputs=[(_visited(_tile_map(q_row, kv_row, other, own).swapaxes(1, 2)), None),
                (qs, query), (ks, _own_tile(own, ks)), (vs, _own_tile(own, vs)), (ds, query), (lses, row),
                (deltas, row), (q_row, _whole_facts(q_row)), (kv_row, _own_facts(own))],
        outputs=[(ks.shape, summed, _own_tile(own, ks)), (vs.shape, summed, _own_tile(own, vs))],
        warps=4, products=4, pairs=batch * heads * length * slots)
    dq, dk, dv = _unpadded(dq, length, width), _unpadded(dk, slots, width), _unpadded(dv, slots, width)
    return dq, dk.astype(k.dtype), dv.astype(k.dtype)


# The kernels. A name in the singular is a tile; `..._ref` is memory.

def _forward_kernel(visited_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, q_facts_ref: Any, kv_facts_ref: Any,
                    out_ref: Any, lse_ref: Any, *, scale: float, other: int, tiles: Tiles) -> None:
    q, facts = q_ref[...], _columns(q_facts_ref, tiles)

    def one(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        out, high, total = carry
        at = _place(j, other)
        score = jnp.where(_visible(facts, _rows(kv_facts_ref, at)), _dot(q, k_ref[at, :].T, tiles) * scale, INVISIBLE)
        new = jnp.maximum(high, score.max(axis=1, keepdims=True))
        weight, kept = jnp.exp(score - new), jnp.exp(high - new)
        v = v_ref[at, :]
        out = out * kept + _dot(weight.astype(v.dtype), v, tiles)
        return out, new, total * kept + weight.sum(axis=1, keepdims=True)

    column = (q.shape[0], 1)
    out, high, total = jax.lax.fori_loop(
        *_range(visited_ref), one,
        (jnp.zeros(q.shape, jnp.float32), jnp.full(column, NOTHING, jnp.float32), jnp.zeros(column, jnp.float32)))
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    out_ref[...] = (out / total).astype(out_ref.dtype)
    # Where nothing was seen the backward pass must find no weights: exp(score - lse) is 0.
    lse_ref[...] = _row(jnp.where(seen, high + jnp.log(total), -INVISIBLE), tiles)


def _dq_kernel(visited_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, d_out_ref: Any, lse_ref: Any, delta_ref: Any,
               q_facts_ref: Any, kv_facts_ref: Any, dq_ref: Any, *, scale: float, other: int, tiles: Tiles) -> None:
    q, d_out, facts = q_ref[...], d_out_ref[...], _columns(q_facts_ref, tiles)
    lse, delta = _column(lse_ref[...], tiles), _column(delta_ref[...], tiles)

    def one(j: Array, dq: Array) -> Array:
        at = _place(j, other)
        k = k_ref[at, :]
        score = jnp.where(_visible(facts, _rows(kv_facts_ref, at)), _dot(q, k.T, tiles) * scale, INVISIBLE)
        d_score = jnp.exp(score - lse) * (_dot(d_out, v_ref[at, :].T, tiles) - delta)
        return dq + _dot(d_score.astype(k.dtype), k, tiles)

    dq = jax.lax.fori_loop(*_range(visited_ref), one, jnp.zeros(q.shape, jnp.float32))
    dq_ref[...] = (dq * scale).astype(dq_ref.dtype)


def _dkv_kernel(visited_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, d_out_ref: Any, lse_ref: Any, delta_ref: Any,
                q_facts_ref: Any, kv_facts_ref: Any, dk_ref: Any, dv_ref: Any, *, scale: float, other: int,
                group: int, steps: int, tiles: Tiles) -> None:
    """Works on transposed tiles `[S, T]`: keys are the own side, and lie in columns."""
    k, v, facts = k_ref[...], v_ref[...], _columns(kv_facts_ref, tiles)
    first, last = _range(visited_ref)
    step = pl.program_id(3)

    visited = last - first

    def one(turn: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        dk, dv = carry
        head = jax.lax.div(turn, visited)
        at = _place(first + turn - head * visited, other)
        q, d_out = q_ref[head, at, :], d_out_ref[head, at, :]
        score = jnp.where(_visible(_rows(q_facts_ref, at), facts), _dot(k, q.T, tiles) * scale, INVISIBLE)
        weight = jnp.exp(score - lse_ref[head, :, at])
        d_score = weight * (_dot(v, d_out.T, tiles) - delta_ref[head, :, at])
        return dk + _dot(d_score.astype(q.dtype), q, tiles), dv + _dot(weight.astype(d_out.dtype), d_out, tiles)

    sums = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    sums = jax.lax.fori_loop(0, group * visited, one, sums)
    for ref, value in zip((dk_ref, dv_ref), (sums[0] * scale, sums[1]), strict=True):
        if steps == 1:
            ref[...] = value.astype(ref.dtype)
        else:
            ref[...] = value + jnp.where(step > 0, ref[...], 0.0)


def _dot(a: Array, b: Array, tiles: Tiles) -> Array:
    """a b in float32; float32 inputs keep their digits (on GPUs as three products on the tensor cores)."""
    precision: Any = None
    if a.dtype == jnp.float32:
        precision = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3 if tiles.platform == "gpu" \
            else jax.lax.Precision.HIGHEST
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _visible(query: tuple[Array, Array, Array], key: tuple[Array, Array, Array]) -> Array:
    """`attention.allowed` on a tile."""
    return ((query[SEGMENT] == key[SEGMENT]) & (query[SEGMENT] > 0)
            & on_path(key[BRANCH], query[BRANCH]) & (key[INDEX] <= query[INDEX]))


def _place(number: Array, block: int) -> Any:
    return pl.ds(pl.multiple_of(number * block, block), block)


def _rows(ref: Any, at: Any) -> tuple[Array, Array, Array]:
    """Facts `[1, block]` of the looped side."""
    return tuple(ref[pl.ds(fact, 1), at] for fact in range(3))  # type: ignore[return-value]


def _columns(ref: Any, tiles: Tiles) -> tuple[Array, Array, Array]:
    """Facts `[block, 1]` of the own side."""
    return tuple(_column(ref[pl.ds(fact, 1), :], tiles) for fact in range(3))  # type: ignore[return-value]


def _column(row: Array, tiles: Tiles) -> Array:
    """`[1, n]` -> `[n, 1]`. Mosaic transposes whole registers, so there a row is repeated to fill them."""
    return jnp.broadcast_to(row, (128, row.shape[1])).T[:, :1] if tiles.mosaic else row.reshape(-1, 1)


def _row(column: Array, tiles: Tiles) -> Array:
    """`[n, 1]` -> `[1, n]`."""
    return jnp.broadcast_to(column, (column.shape[0], 128)).T[:1] if tiles.mosaic else column.reshape(1, -1)


def _range(ref: Any) -> tuple[Array, Array]:
    """First tile to visit, and the one behind the last."""
    at = 2 * ((pl.program_id(0)) * pl.num_programs(2) + pl.program_id(2))
    return ref[at], ref[at + 1]


# Around the kernels.

def _call(kernel: Any, name: str, grid: tuple[int, ...], tiles: Tiles, inputs: list[tuple[Array, Any]],
          outputs: list[tuple[tuple[int, ...], Any, Any]], warps: int, products: int, pairs: int) -> list[Array]:
    """Runs a kernel; the first input is the ranges of tiles, which every program reads its own two numbers of.

    Args:
        products, pairs: matrix products per tile, and (query, key) pairs of all heads: half of them are visible in
            causal rows, which is what the compiler is told of the kernel's cost.
    """
    params: dict[str, Any] = {}
    ranges = pl.BlockSpec()
    if tiles.platform == "gpu":
        from jax.experimental.pallas import triton
        params["compiler_params"] = triton.CompilerParams(num_warps=warps, num_stages=tiles.stages)
    elif tiles.platform == "tpu":
        from jax.experimental.pallas import tpu
        ranges = pl.BlockSpec(memory_space=tpu.SMEM)
        order: Any = ("parallel", "parallel", "parallel", "arbitrary")[:len(grid)]
        params["compiler_params"] = tpu.CompilerParams(dimension_semantics=order)
    else:
        params["interpret"] = True
    return pl.pallas_call(
        kernel, grid=grid, in_specs=[spec or ranges for _, spec in inputs], out_specs=[spec for *_, spec in outputs],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outputs], name=name,
        cost_estimate=pl.CostEstimate(
            flops=products * pairs * inputs[1][0].shape[3], transcendentals=pairs // 2,
            bytes_accessed=sum(x.nbytes for x, _ in inputs) + sum(
                math.prod(shape) * jnp.dtype(dtype).itemsize for shape, dtype, _ in outputs)),
        **params)(*(x for x, _ in inputs))


def _own_tile(block: int, x: Array) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, block, x.shape[3]), lambda b, h, i, *_: (b, h, i, 0))


def _own_row(block: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, 1, block), lambda b, h, i, *_: (b, h, 0, i))


def _own_facts(block: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, 3, block), lambda b, h, i, *_: (b, 0, i))


def _whole(x: Array, group: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, *x.shape[2:]), lambda b, h, i, *_: (b, h // group, 0, 0))


def _whole_facts(x: Array) -> pl.BlockSpec:
    return pl.BlockSpec((None, *x.shape[1:]), lambda b, h, i, *_: (b, 0, 0))


def _blocks(blocks: tuple[int, int], own: int, other: int, dtype: Any, tiles: Tiles) -> tuple[int, int]:
    """The blocks, no larger than the lengths ask for; on GPUs half of them for float32, which takes twice the room."""
    least, share = (128, 1) if tiles.mosaic else (16, 2 if dtype == jnp.float32 and tiles.platform == "gpu" else 1)
    return tuple(min(block // share, max(least, pl.next_power_of_2(length)))  # type: ignore[return-value]
                 for block, length in zip(blocks, (own, other), strict=True))


def _padded(x: Float[Array, "B T H D"], block: int, tiles: Tiles) -> Float[Array, "B H Tp Dp"]:
    """Head-major, whole blocks long; on GPUs as wide as the next power of two."""
    width = x.shape[3]
    wide = width if tiles.mosaic else max(16, pl.next_power_of_2(width))
    return jnp.pad(rearrange(x, "b t h d -> b h t d"),
                   [(0, 0), (0, 0), (0, -x.shape[1] % block), (0, wide - width)])


def _padded_facts(facts: Int[Array, "B 3 T"], block: int) -> Int[Array, "B 3 Tp"]:
    """Padding has segment 0: it sees nothing and is seen by nothing."""
    return jnp.pad(facts, [(0, 0), (0, 0), (0, -facts.shape[2] % block)])


def _unpadded(x: Float[Array, "B H Tp Dp"], length: int, width: int) -> Float[Array, "B T H D"]:
    return rearrange(x[:, :, :length, :width], "b h t d -> b t h d")


def _tile_map(q_facts: Int[Array, "B 3 T"], kv_facts: Int[Array, "B 3 S"], query_block: int, key_block: int) -> Array:
    """`[B, query tiles, key tiles]`: whether anything in the tile may be visible, by its extremes."""
    q, k = (rearrange(facts, "b f (n t) -> f b n t", t=block)
            for facts, block in ((q_facts, query_block), (kv_facts, key_block)))

    def low(values: Array, facts: Array) -> Array:
        return jnp.where(facts[SEGMENT] > 0, values, _FAR).min(axis=-1)

    def high(values: Array, facts: Array) -> Array:
        return jnp.where(facts[SEGMENT] > 0, values, -1).max(axis=-1)

    q_low, q_high, k_low, k_high = low(q[SEGMENT], q), high(q[SEGMENT], q), low(k[SEGMENT], k), high(k[SEGMENT], k)
    meet = (q_low[:, :, None] <= k_high[:, None]) & (k_low[:, None] <= q_high[:, :, None])
    return meet & (low(k[INDEX], k)[:, None] <= high(q[INDEX], q)[:, :, None])


def _visited(tile_map: Array) -> Int[Array, " B_own_2"]:
    """Per own tile the first tile to visit and the one behind the last; twice the same where there is none."""
    tile_map = jnp.asarray(tile_map)
    some = tile_map.any(axis=-1)
    first = jnp.where(some, tile_map.argmax(axis=-1), 0)
    behind = jnp.where(some, tile_map.shape[-1] - tile_map[..., ::-1].argmax(axis=-1), 0)
    return jnp.stack([first, behind], axis=-1).astype(jnp.int32).reshape(-1)
