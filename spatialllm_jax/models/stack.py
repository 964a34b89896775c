"""Layers stacked on a leading axis: one traced layer, scanned, rematerialised on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from spatialllm_jax.errors import UserError

REMAT: dict[str, Callable[..., bool] | None] = {
    "full": None,
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
}


def stacked(layer: type[nn.Module], depth: int, in_axes: Any, remat: str = "none",
            static_argnums: tuple[int, ...] = (), unroll: int = 1) -> Any:
    """`layer` scanned over `depth`: parameters `[depth, ...]`, compile time constant in depth.

    Args:
        layer: a module whose `__call__(carry, *args)` returns `(carry, per-layer output)`.
        in_axes: 0 or `nn.broadcast` for each of `args`.
        remat: "none", or a key of `REMAT`: what the backward pass may keep.
        static_argnums: Python values among the arguments (self counted as 0), for remat.
        unroll: layers per step of the scan. On CPU `depth` is a fifth faster and the models are small.

    Raises:
        UserError: `remat` is not known.
    """
    if remat != "none":
        if remat not in REMAT:
            raise UserError(f"remat {remat!r} is not known; choose one of none, {', '.join(REMAT)}")
        layer = nn.remat(layer, policy=REMAT[remat], prevent_cse=False, static_argnums=static_argnums)
    return nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True},
                   in_axes=in_axes, length=depth, unroll=min(unroll, depth))


def first_layers(scanned: Any, count: int) -> Any:
    """A scanned module that reads only the first `count` layers of the parameters it is given."""
    return nn.map_variables(scanned, "params",
                            trans_in_fn=lambda params: jax.tree.map(lambda a: a[:count], params))
