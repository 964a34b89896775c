"""Frozen kernels in 8 or 4 bits: symmetric integers, and scales that turn them back into a kernel.

    int8   one scale per output channel, float32          "kernel_int8" [in, out], "scale_int8" [out]
    int4   one scale per block of up to 64 inputs and output channel, bfloat16, two values in a byte
                                                          "kernel_int4" [in / 2, out], "scale_int4" [in / block, out]

As in QLoRA (Dettmers et al., 2023) the base is stored small and computed in the compute type; its NF4 is a table
look-up and this is arithmetic, which XLA fuses into whatever reads the kernel, with an error of half a step at most.
Values are packed by hand: `jnp.int4` takes a whole byte on hosts and in files, and splitting it over devices differs
between back ends, whereas bytes are bytes everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spatialllm_jax.errors import UserError

BLOCK = 64
_LARGEST = {"int8": 127.0, "int4": 7.0}
_SCALE_TYPE = {"int8": jnp.float32, "int4": jnp.bfloat16}


def block_size(inputs: int) -> int:
    """Inputs that share a scale under int4: 64, or what divides both 64 and the inputs of a small kernel.

    Raises:
        UserError: the number of inputs is odd, so that two do not fill a byte.
    """
    if inputs % 2:
        raise UserError(f"a kernel of {inputs} inputs cannot be stored in int4, which pairs them; set quantize to int8")
    return math.gcd(inputs, BLOCK)


def stored_shapes(inputs: int, outputs: int, scheme: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Name -> shape and type of the parameters that stand for a kernel `[inputs, outputs]`."""
    if scheme == "int8":
        shapes = {"kernel_int8": ((inputs, outputs), jnp.int8), "scale_int8": ((outputs,), jnp.float32)}
    else:
        blocks = inputs // block_size(inputs)
        shapes = {"kernel_int4": ((inputs // 2, outputs), jnp.uint8), "scale_int4": ((blocks, outputs), jnp.bfloat16)}
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}


def quantized(kernel: Float[Array, "i o"], scheme: str) -> dict[str, Array]:
    """The parameters that stand for `kernel`, see `stored_shapes`; their error is half a scale at most."""
    blocks = kernel.astype(jnp.float32)[None]
    if scheme == "int4":
        blocks = blocks.reshape(-1, block_size(kernel.shape[0]), kernel.shape[1])
    largest = jnp.abs(blocks).max(axis=1, keepdims=True)
    # The integers are chosen for the scale as it is stored: its own rounding costs nothing more.
    scale = (jnp.where(largest > 0, largest, 1.0) / _LARGEST[scheme]).astype(_SCALE_TYPE[scheme])
    steps = jnp.round(blocks / scale.astype(jnp.float32)).clip(-_LARGEST[scheme], _LARGEST[scheme])
    if scheme == "int8":
        return {"kernel_int8": steps[0].astype(jnp.int8), "scale_int8": scale[0, 0]}
    pairs = (steps.reshape(-1, 2, kernel.shape[1]) + 8).astype(jnp.uint8)
    return {"kernel_int4": pairs[:, 0] | (pairs[:, 1] << 4), "scale_int4": scale[:, 0]}


def kernel_of(stored: Mapping[str, Array], dtype: Any = jnp.float32) -> Float[Array, "i o"]:
    """The kernel that `quantized` parameters stand for, multiplied out in float32 and cast to `dtype`."""
    if "kernel_int8" in stored:
        return (stored["kernel_int8"].astype(jnp.float32) * stored["scale_int8"]).astype(dtype)
    packed, scale = stored["kernel_int4"], stored["scale_int4"].astype(jnp.float32)
    steps = jnp.stack([packed & 15, packed >> 4], axis=1).astype(jnp.float32) - 8
    blocks = steps.reshape(scale.shape[0], -1, scale.shape[1]) * scale[:, None]
    return blocks.reshape(-1, scale.shape[1]).astype(dtype)
