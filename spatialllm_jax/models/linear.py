"""The one linear layer of every tower; LoRA on it, and its kernel in fewer bits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spatialllm_jax.errors import UserError
from spatialllm_jax.models.attention import platform
from spatialllm_jax.models.config import LoRAConfig, ModelConfig
from spatialllm_jax.models.quantize import kernel_of, stored_shapes

Params = dict[str, Any]


class Linear(nn.Module):
    """y = x W + b, plus (alpha / rank) dropout(x) A B when `lora` targets this layer.

    Parameters: "kernel" `[in, out]`, "bias" `[out]`, "lora_a" `[in, rank]`, "lora_b" `[rank, out]`. B starts
    at zero, so that a fresh LoRA changes nothing. Parameters are cast to `dtype` where they are used.

    Attributes:
        init_scale: variance of the kernel times fan-in; projections back into a residual stream pass
            1 / (2 depth), so that the stream's variance does not grow with depth.
        kernel_init: another initialiser of the kernel; `init_scale` is then without effect.
        quantize: "int8" or "int4" where the kernel is stored so (`models.quantize`). These parameters are made from
            a full kernel and never initialised: `init` gives zeros.
    """

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    lora: LoRAConfig | None = None
    init_scale: float = 1.0
    kernel_init: nn.initializers.Initializer | None = None
    quantize: str = "none"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch i"], deterministic: bool = True) -> Float[Array, "*batch o"]:
        x = x.astype(self.dtype)
        if self.quantize == "none":
            kernel_init = self.kernel_init or nn.initializers.variance_scaling(self.init_scale, "fan_in", "normal")
            kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features), jnp.float32)
            y = product(x, kernel.astype(self.dtype))
        else:
            y = _product(x, {
                name: self.param(name, nn.initializers.zeros_init(), leaf.shape, leaf.dtype)
                for name, leaf in stored_shapes(x.shape[-1], self.features, self.quantize).items()})
        if self.lora is not None and re.search(self.lora.targets, "/".join(self.path)):
            a = self.param("lora_a", nn.initializers.he_uniform(), (x.shape[-1], self.lora.rank), jnp.float32)
            b = self.param("lora_b", nn.initializers.zeros_init(), (self.lora.rank, self.features), jnp.float32)
            x = nn.Dropout(self.lora.dropout)(x, deterministic=deterministic)
            low = product(x, a.astype(self.dtype))
            y = y + self.lora.scale * product(low, b.astype(self.dtype))
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros_init(), (self.features,),
                               jnp.float32).astype(self.dtype)
        return y


def product(x: Float[Array, "*batch i"], kernel: Float[Array, "i o"]) -> Float[Array, "*batch o"]:
    """x W, on a single CPU with the batch axes made one.

    A kernel's gradient sums over all of them. Over several axes XLA's CPU back end makes it from transposed copies, and
    the activations in them once more, element by element against the grain: 15 % of a training step. Devices that share
    the work keep the axes: joined ones have no sharding of their own, and the partitioner gave other gradients.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if x.ndim < 3 or platform() != "cpu" or (not mesh.empty and mesh.size > 1):
        return jnp.einsum("...i,io->...o", x, kernel)
    flat = jnp.einsum("ni,io->no", x.reshape(-1, x.shape[-1]), kernel)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


@jax.checkpoint
def _product(x: Float[Array, "*batch i"], stored: dict[str, Array]) -> Float[Array, "*batch o"]:
    """x W of a quantised W. The backward pass makes W again, whatever `remat` says: kept for it, the full kernels of
    all layers would stand in memory together, which is what quantising is to avoid."""
    return jnp.einsum("...i,io->...o", x, kernel_of(stored, x.dtype))


def fold_lora(params: Mapping[str, Any], lora: LoRAConfig) -> Params:
    """`params` of one tower with every LoRA pair added into its kernel, in float32, and dropped."""
    if "lora_a" in params:
        update = jnp.einsum("...ir,...ro->...io", params["lora_a"].astype(jnp.float32),
                            params["lora_b"].astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
        kernel = params["kernel"]
        merged = (kernel.astype(jnp.float32) + lora.scale * update).astype(kernel.dtype)
        rest = {key: value for key, value in params.items() if key not in ("lora_a", "lora_b")}
        return {**rest, "kernel": merged}
    return {key: fold_lora(value, lora) if isinstance(value, Mapping) else value
            for key, value in params.items()}


def merge_lora(params: Mapping[str, Any], config: ModelConfig) -> Params:
    """Parameters of the plain model that computes what `params` compute with their LoRA.

    Args:
        params: tree of `SpatialLLM`, or of `CLIP` (any tree with "vision" and perhaps "llm").
        config: the configuration that `params` were made with (`vision_lora`, `llm_lora`; a `ClipConfig`
            serves as well).

    Raises:
        UserError: a LoRA pair sits where the configuration has no LoRA.
    """
    merged = dict(params)
    for part, lora in (("vision", config.vision_lora), ("llm", getattr(config, "llm_lora", None))):
        if part in merged and lora is not None:
            merged[part] = fold_lora(merged[part], lora)
    stray = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(merged)
             if getattr(path[-1], "key", "") in ("lora_a", "lora_b")]
    if stray:
        raise UserError(f"parameter {stray[0]} is a LoRA update but the config has no LoRA there; "
                        "set vision_lora / llm_lora as in training")
    return merged
