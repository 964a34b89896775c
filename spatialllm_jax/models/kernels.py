"""Attention kernels as differentiable functions of whole arrays: under a mesh, every device runs its own part.

Kernels know nothing of meshes, and the partitioner nothing of kernels: under a mesh (`jax.set_mesh`) they run inside
`jax.shard_map`, with rows, heads and, where the mesh splits it, the length of the queries divided as
`parallel.rules.MESH_AXES` says; keys and values keep their whole length.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from spatialllm_jax.models import flash
from spatialllm_jax.models.attention import LSE, OUT
from spatialllm_jax.parallel.rules import axes_that_divide


@dataclasses.dataclass(frozen=True)
class Division:
    """Mesh axes over which an attention is divided.

    Attributes:
        rows, heads, length: of the batch, of query and key heads, of the queries; empty where whole.
        manual: the axes that `shard_map` takes over; empty without a mesh.
        repeat: how often every key and value head is repeated so that heads divide.
    """

    rows: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    length: tuple[str, ...] = ()
    manual: frozenset[str] = frozenset()
    repeat: int = 1

    @property
    def query(self) -> PartitionSpec:
        """Of `[B, T, H, D]`."""
        return PartitionSpec(self.rows or None, self.length or None, self.heads or None)

    @property
    def key(self) -> PartitionSpec:
        """Of `[B, S, K, D]`."""
        return PartitionSpec(self.rows or None, None, self.heads or None)

    @property
    def number(self) -> PartitionSpec:
        """Of one number per query and head, `[B, H, T]`."""
        return PartitionSpec(self.rows or None, self.heads or None, self.length or None)

    @property
    def query_facts(self) -> PartitionSpec:
        """Of `[B, 3, T]`."""
        return PartitionSpec(self.rows or None, None, self.length or None)

    @property
    def key_facts(self) -> PartitionSpec:
        """Of `[B, 3, S]`."""
        return PartitionSpec(self.rows or None)

    def run(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        """`function` of every device's own part."""
        if not self.manual:
            return function
        # Outputs of kernels carry no information on what varies over the mesh: nothing to check.
        return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, axis_names=set(self.manual),
                             check_vma=False)


def divide(q: Float[Array, "B T H D"], k: Float[Array, "B S K D"], of: str = "batch") -> Division:
    """How the mesh that is set divides an attention; what does not divide evenly stays whole.

    Args:
        of: the logical axis of the rows: "batch", whose positions may be split as well, or "images".
    """
    (rows, length, heads, _), kv_heads = q.shape, k.shape[2]
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return Division()
    free = {axis: mesh.shape[axis] for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
            if kind != AxisType.Manual}
    head_axes = axes_that_divide("heads", heads, free)
    ways = math.prod(mesh.shape[axis] for axis in head_axes)
    group = heads // kv_heads
    repeat = next(r for r in range(1, group + 1) if group % r == 0 and kv_heads * r % ways == 0)
    return Division(axes_that_divide(of, rows, free), head_axes,
                    axes_that_divide("length", length, free) if of == "batch" else (), frozenset(free), repeat)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def flash_attention(
    q: Float[Array, "B T H D"], k: Float[Array, "B S K D"], v: Float[Array, "B S K D"],
    q_facts: Int[Array, "B 3 T"], kv_facts: Int[Array, "B 3 S"], tiles: flash.Tiles, of: str = "batch",
) -> Float[Array, "B T H D"]:
    """`flash.forward`, differentiable, on whatever mesh is set.

    Args:
        q_facts, kv_facts: segment, branch and index of every token, in this order; see `attention.Mask`.
        of: see `divide`.
    """
    return _forward(q, k, v, q_facts, kv_facts, tiles, of)[0]


def _forward(q: Array, k: Array, v: Array, q_facts: Array, kv_facts: Array, tiles: flash.Tiles, of: str,
             ) -> tuple[Array, Any]:
    on = divide(q, k, of)
    k_heads, v_heads = (_repeated(x, on.repeat) for x in (k, v))
    out, lse = on.run(functools.partial(flash.forward, tiles=tiles),
                      (on.query, on.key, on.key, on.query_facts, on.key_facts), (on.query, on.number))(
                          q, k_heads, v_heads, q_facts, kv_facts)
    out, lse = checkpoint_name(out, OUT), checkpoint_name(lse, LSE)
    return out, (q, k, v, q_facts, kv_facts, out, lse)


def _backward(tiles: flash.Tiles, of: str, residuals: Any, d_out: Array) -> Any:
    q, k, v, q_facts, kv_facts, out, lse = residuals
    on = divide(q, k, of)

    one_device: Any = functools.partial(flash.backward, tiles=tiles)

    def local(*parts: Array) -> tuple[Array, Array, Array]:
        dq, dk, dv = one_device(*parts)
        # Every part of the queries has looked at all keys.
        return (dq, *jax.lax.psum((dk, dv), on.length)) if on.length else (dq, dk, dv)

    dq, dk, dv = on.run(
        local, (on.query, on.key, on.key, on.query_facts, on.key_facts, on.query, on.number, on.query),
        (on.query, on.key, on.key))(
            q, _repeated(k, on.repeat), _repeated(v, on.repeat), q_facts, kv_facts, out, lse, d_out)
    return dq, _summed(dk, on.repeat), _summed(dv, on.repeat), None, None


flash_attention.defvjp(_forward, _backward)


def _repeated(x: Float[Array, "B S K D"], times: int) -> Float[Array, "B S K_times D"]:
    return jnp.repeat(x, times, axis=2) if times > 1 else x


def _summed(x: Float[Array, "B S K_times D"], times: int) -> Float[Array, "B S K D"]:
    return x.reshape(*x.shape[:2], -1, times, x.shape[3]).sum(axis=3) if times > 1 else x
