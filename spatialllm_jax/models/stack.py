"""Layers stacked on a leading axis: one traced layer, scanned, rematerialised on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from spatialllm_jax.errors import UserError
from spatialllm_jax.models.attention import platform

# What layers give a name (`jax.ad_checkpoint.checkpoint_name`): queries, keys and values as attention takes them, its
# output and log-sum-exp, and what the MLP's activation is of (the gate of SwiGLU, otherwise "up").
NAMES = ("query", "key", "value", "attention_out", "attention_lse", "mlp_gate")

# What the backward pass may keep of a layer beside its input; everything else it makes again. Keeping an element of
# any of these spares about D multiplications, D the width; of Llama-3-8B in bfloat16 and 16 rows of 2,048, D elements
# per token are 8.6 GB over all layers. `selective_light` keeps 1.5 D and `selective` 5 D. Attention's output is not
# among them: it costs D elements, and of short samples is made again for less.
KEPT: dict[str, tuple[str, ...]] = {
    "selective_light": ("query", "key", "value"),
    "selective": ("query", "key", "value", "mlp_gate"),
}
OFFLOADED = KEPT["selective"]
REMAT = ("none", "full", "dots", *KEPT, "offload")


def policy(remat: str) -> Callable[..., Any] | None:
    """The policy of `jax.checkpoint` for a setting other than "none"; None makes everything again.

    Args:
        remat: "full" keeps nothing, "dots" every product with a kernel, a key of `KEPT` what it says, "offload" what
            `selective` keeps, in the host's memory; "save:NAMES" and "offload:NAMES" those of `NAMES` that are listed,
            with commas between.

    Raises:
        UserError: `remat` is none of these, or the devices cannot reach the host's memory.
    """
    kind, _, listed = remat.partition(":")
    if remat not in REMAT and not (kind in ("save", "offload") and listed):
        raise UserError(f"remat {remat!r} is not known; choose one of {', '.join(REMAT)}, save:NAMES, offload:NAMES")
    names = tuple(listed.split(",")) if listed else OFFLOADED if kind == "offload" else KEPT.get(kind, ())
    if unknown := [name for name in names if name not in NAMES]:
        raise UserError(f"remat {remat!r}: layers have nothing called {unknown[0]!r}; choose from {', '.join(NAMES)}")
    if kind == "offload":
        if not _reaches_host():
            raise UserError(f"remat {remat!r} needs devices with pinned_host memory, which {platform()} here lacks; "
                            "choose selective or full")
        return jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=list(names), offload_src="device",
            offload_dst="pinned_host")
    if names:
        return jax.checkpoint_policies.save_only_these_names(*names)
    return jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims if kind == "dots" else None


def _reaches_host() -> bool:
    """Whether activations can wait in the host's memory. GPUs and TPUs can; other devices are asked."""
    return platform() in ("gpu", "tpu") or "pinned_host" in {
        memory.kind for memory in jax.local_devices()[0].addressable_memories()}


def stacked(layer: type[nn.Module], depth: int, in_axes: Any, remat: str = "none",
            static_argnums: tuple[int, ...] = (), unroll: int = 1) -> Any:
    """`layer` scanned over `depth`: parameters `[depth, ...]`, compile time constant in depth.

    Args:
        layer: a module whose `__call__(carry, *args)` returns `(carry, per-layer output)`.
        in_axes: 0 or `nn.broadcast` for each of `args`.
        remat: "none", or what the backward pass may keep; see `policy`.
        static_argnums: Python values among the arguments (self counted as 0), for remat.
        unroll: layers per step of the scan. On CPU `depth` is a fifth faster and the models are small.

    Raises:
        UserError: `remat` is not known.
    """
    if remat != "none":
        layer = nn.remat(layer, policy=policy(remat), prevent_cse=False, static_argnums=static_argnums)
    return nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True},
                   in_axes=in_axes, length=depth, unroll=min(unroll, depth))


def first_layers(scanned: Any, count: int) -> Any:
    """A scanned module that reads only the first `count` layers of the parameters it is given."""
    return nn.map_variables(scanned, "params",
                            trans_in_fn=lambda params: jax.tree.map(lambda a: a[:count], params))
