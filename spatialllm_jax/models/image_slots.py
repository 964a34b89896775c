"""Image slots of packed rows: only those that hold an image are encoded."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, UInt8

from spatialllm_jax.models.linear import Params
from spatialllm_jax.parallel.rules import MESH_AXES

Encode = Callable[[Params, Array], Array]


def encode_present(encode: Encode, params: Params, images: UInt8[Array, "B N H W 3"], present: Bool[Array, "B N"],
                   chunk: int = 8) -> Float[Array, "B N P C"]:
    """Features of the images that are present, zeros for the empty slots.

    Every device sorts its own slots, images first, and encodes them `chunk` at a time until they end; chunks of empty
    slots alone are not computed. Devices that hold the same rows (mesh axes "context" and "tensor") share the work. The
    encoders' parameters are gathered once for all of it, which at a few hundred million of them costs less than
    splitting every product.

    Args:
        encode: (params, images `[M, H, W, 3]`) -> features `[M, P, C]`; pure, each image for itself.
        chunk: images per call, which also bounds the encoders' memory.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _own_slots(params, images, present, encode=encode, chunk=chunk, rows=(), others=(), ways=1)
    rows = MESH_AXES["batch"]
    others = tuple(axis for axis in mesh.axis_names if axis not in rows)
    ways = math.prod(mesh.shape[axis] for axis in others)
    one_device = functools.partial(_own_slots, encode=encode, chunk=chunk, rows=rows, others=others, ways=ways)
    batch = PartitionSpec(rows)
    # Unchecked: attention kernels within do not say along which axes their results vary.
    return jax.shard_map(one_device, in_specs=(PartitionSpec(), batch, batch), out_specs=batch, check_vma=False)(
        params, images, present)


def _own_slots(params: Params, images: Array, present: Array, *, encode: Encode, chunk: int, rows: tuple[str, ...],
               others: tuple[str, ...], ways: int) -> Array:
    """`encode_present` of one device's rows, which `ways` devices along the mesh axes `others` have in common."""
    count = present.size
    flat, present = rearrange(images, "b n h w c -> (b n) h w c"), present.reshape(-1)
    # Dealt out like cards: with images first, each device of a group gets its share of them.
    per_device = -(-count // ways)
    chunk = min(chunk, per_device)
    order = jnp.argsort(~present, stable=True)
    order = jnp.pad(order, (0, -count % (ways * chunk)), constant_values=count)     # `count` is no slot at all
    mine = order.reshape(-1, ways)[:, jax.lax.axis_index(others) if others else 0].reshape(-1, chunk)
    features = jax.eval_shape(encode, params, flat[:1])
    nothing = jnp.zeros((chunk, *features.shape[1:]), features.dtype)
    if axes := (*rows, *others):
        # Here and not where they are used: the sum of the devices' gradients must not stand in a branch that some of
        # them do not take.
        params, nothing = jax.tree.map(lambda x: jax.lax.pcast(x, axes, to="varying"), (params, nothing))

    def of_chunk(slots: Array) -> Array:
        return jax.lax.cond(present.at[slots].get(mode="fill", fill_value=False).any(),
                            lambda: encode(params, flat.at[slots].get(mode="clip")), lambda: nothing)

    encoded = jax.lax.map(of_chunk, mine).reshape(-1, *features.shape[1:])
    whole = jnp.zeros((count, *features.shape[1:]), features.dtype).at[mine.reshape(-1)].set(encoded, mode="drop")
    whole = jnp.where(present[:, None, None], whole, 0.0)
    if others:
        whole = jax.lax.psum(whole, others)
    return rearrange(whole, "(b n) p c -> b n p c", n=images.shape[1])
