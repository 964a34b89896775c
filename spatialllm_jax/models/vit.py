"""One vision transformer for CLIP, DINOv2 and MAE; its block also makes CLIP's text tower."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from spatialllm_jax.models.attention import Mask, attention
from spatialllm_jax.models.config import LoRAConfig, VisionConfig
from spatialllm_jax.models.linear import Linear
from spatialllm_jax.models.stack import first_layers, stacked
from spatialllm_jax.parallel.rules import constrain

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def layer_norm(eps: float, dtype: Any, name: str) -> nn.LayerNorm:
    """LayerNorm with float32 statistics and parameters "scale", "bias"."""
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


class SelfAttention(nn.Module):
    """Multi-head attention with biases, as in all three vision families and CLIP's text tower."""

    num_heads: int
    init_scale: float
    dtype: Any
    attention: str
    lora: LoRAConfig | None

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Mask | None, deterministic: bool) -> Float[Array, "B T D"]:
        def linear(name: str, scale: float = 1.0) -> Linear:
            return Linear(x.shape[-1], dtype=self.dtype, lora=self.lora, init_scale=scale, name=name)

        q, k, v = (checkpoint_name(rearrange(linear(name)(x, deterministic), "b t (h d) -> b t h d", h=self.num_heads),
                                   name) for name in ("query", "key", "value"))
        out = attention(q, k, v, mask, self.attention)
        return linear("out", self.init_scale)(rearrange(out, "b t h d -> b t (h d)"), deterministic)


class MLP(nn.Module):
    """up - activation - down, or SwiGLU: down(silu(gate) * up)."""

    hidden: int
    activation: str
    swiglu: bool
    init_scale: float
    dtype: Any
    lora: LoRAConfig | None

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], deterministic: bool) -> Float[Array, "B T D"]:
        up = Linear(self.hidden, dtype=self.dtype, lora=self.lora, name="up")(x, deterministic)
        if self.swiglu:
            gate = Linear(self.hidden, dtype=self.dtype, lora=self.lora, name="gate")(x, deterministic)
            hidden = jax.nn.silu(checkpoint_name(gate, "mlp_gate")) * up
        else:
            hidden = ACTIVATIONS[self.activation](checkpoint_name(up, "mlp_gate"))
        return Linear(x.shape[-1], dtype=self.dtype, lora=self.lora, init_scale=self.init_scale,
                      name="down")(hidden, deterministic)


class Block(nn.Module):
    """Pre-norm transformer block; `layer_scale` multiplies both branches by learned vectors (DINOv2)."""

    num_heads: int
    mlp_dim: int
    depth: int
    activation: str = "gelu"
    swiglu: bool = False
    layer_scale: bool = False
    norm_eps: float = 1e-6
    dtype: Any = jnp.float32
    attention: str = "xla"
    lora: LoRAConfig | None = None
    collect: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], mask: Mask | None, deterministic: bool,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"] | None]:
        def scaled(y: Array, name: str) -> Array:
            if not self.layer_scale:
                return y
            return y * self.param(name, nn.initializers.ones_init(), (x.shape[-1],), jnp.float32).astype(y.dtype)

        init_scale = 0.5 / self.depth
        y = layer_norm(self.norm_eps, self.dtype, "norm1")(x)
        y = SelfAttention(self.num_heads, init_scale, self.dtype, self.attention, self.lora,
                          name="attention")(y, mask, deterministic)
        x = x + scaled(y, "scale1")
        y = layer_norm(self.norm_eps, self.dtype, "norm2")(x)
        y = MLP(self.mlp_dim, self.activation, self.swiglu, init_scale, self.dtype, self.lora,
                name="mlp")(y, deterministic)
        x = constrain(x + scaled(y, "scale2"), ("images", None, None))
        return x, x if self.collect else None


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    d = np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


@lru_cache(maxsize=64)
def resize_matrix(source: int, target: int, antialias: bool = False) -> np.ndarray:
    """`[target, source]` bicubic interpolation along one axis, as `torch.nn.functional.interpolate` does it
    with align_corners=False: a = -0.75 with the border repeated; antialiased, a = -0.5 on a kernel widened
    by the shrinking factor, renormalised at the border."""
    ratio = source / target
    centers = (np.arange(target) + 0.5) * ratio
    if antialias:
        width = max(ratio, 1.0)
        weights = _cubic((np.arange(source)[None] + 0.5 - centers[:, None]) / width, -0.5)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    taps = np.floor(centers - 0.5).astype(int)[:, None] + np.arange(-1, 3)[None]
    weights = _cubic(centers[:, None] - 0.5 - taps, -0.75)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target)[:, None], np.clip(taps, 0, source - 1)), weights)
    return matrix.astype(np.float32)


def interpolate_positions(
    table: Float[Array, "one_plus_patches D"], source: int, target: int, antialias: bool = False,
) -> Float[Array, "one_plus_new_patches D"]:
    """The position table of a `source` x `source` grid (CLS first) for a `target` x `target` grid."""
    if source == target:
        return table
    matrix = jnp.asarray(resize_matrix(source, target, antialias))
    grid = rearrange(table[1:].astype(jnp.float32), "(h w) d -> h w d", h=source)
    grid = jnp.einsum("ih,jw,hwd->ijd", matrix, matrix, grid, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([table[:1], rearrange(grid, "h w d -> (h w) d").astype(table.dtype)])


def sincos_positions(grid: int, width: int) -> Float[np.ndarray, "one_plus_patches D"]:
    """MAE's fixed 2D positions: half the channels for the column, half for the row; zeros for CLS."""
    omega = 10000.0 ** -(np.arange(width // 4) / (width / 4))
    row, col = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * omega for axis in (col, row)]
    table = np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)
    return np.concatenate([np.zeros((1, width)), table]).astype(np.float32)


class ViT(nn.Module):
    """CLIP's, DINOv2's or MAE's image encoder, see `VisionConfig`."""

    config: VisionConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    lora: LoRAConfig | None = None
    attention: str = "xla"

    @nn.compact
    def __call__(
        self, images: Float[Array, "M H W 3"], output: Literal["features", "pooled", "states"] = "features",
        deterministic: bool = True,
    ) -> Array:
        """Encodes normalised images (see `normalize`); any square size that is a multiple of the patch.

        Args:
            output: what to return, and hence how many blocks run.

        Returns:
            "features": the patch tokens of `config.feature_layer`, `[M, P, D]`;
            "pooled": CLS after the last block and the final norm, `[M, D]` (CLIP's pooled output);
            "states": all hidden states with CLS and registers, `[depth + 1, M, prefix + P, D]`.
        """
        c = self.config
        grid = images.shape[1] // c.patch_size
        patches = rearrange(images, "m (h p) (w q) c -> m (h w) (p q c)", p=c.patch_size, q=c.patch_size)
        x = Linear(c.width, use_bias=c.kind != "clip", dtype=self.dtype, name="patch_embed")(patches)

        normal = nn.initializers.normal(0.02)
        cls = self.param("class_token", normal, (c.width,), jnp.float32)
        x = jnp.concatenate([repeat(cls.astype(self.dtype), "d -> m 1 d", m=x.shape[0]), x], axis=1)
        table_shape = (1 + c.position_grid**2, c.width)
        if c.kind == "mae":
            table = self.param("position_table", lambda _: jnp.asarray(sincos_positions(c.position_grid, c.width)))
        else:
            table = self.param("position_table", normal, table_shape, jnp.float32)
        x = x + interpolate_positions(table, c.position_grid, grid, c.antialias).astype(self.dtype)
        if c.num_registers:
            registers = self.param("registers", normal, (c.num_registers, c.width), jnp.float32)
            registers = repeat(registers.astype(self.dtype), "r d -> m r d", m=x.shape[0])
            x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)
        if c.kind == "clip":
            x = layer_norm(c.norm_eps, self.dtype, "pre_norm")(x)
        embedded = x = constrain(x, ("images", None, None))

        blocks = stacked(Block, c.depth, (nn.broadcast, nn.broadcast), self.remat, static_argnums=(3,))
        count = c.feature_blocks if output == "features" and not self.is_initializing() else c.depth
        if count < c.depth:
            blocks = first_layers(
                stacked(Block, count, (nn.broadcast, nn.broadcast), self.remat, static_argnums=(3,)), count)
        if count:
            x, states = blocks(
                num_heads=c.num_heads, mlp_dim=c.mlp_dim, depth=c.depth, activation=c.activation,
                swiglu=c.swiglu, layer_scale=c.kind == "dinov2", norm_eps=c.norm_eps, dtype=self.dtype,
                attention=self.attention, lora=self.lora, collect=output == "states",
                name="blocks")(x, None, deterministic)
        if output == "states":
            return jnp.concatenate([embedded[None], states])
        final_norm = layer_norm(c.norm_eps, self.dtype, "final_norm")
        if output == "pooled":
            return final_norm(x[:, 0])
        if c.feature_norm or self.is_initializing():
            x = final_norm(x)
        return x[:, c.num_prefix:]


def normalize(images: Array, config: VisionConfig) -> Float[Array, "M H W 3"]:
    """uint8 pixels `[M, H, W, 3]` at the encoder's size and normalisation, in float32."""
    x = images.astype(jnp.float32) / 255.0
    size = (x.shape[0], config.image_size, config.image_size, 3)
    if x.shape != size:
        x = jax.image.resize(x, size, "bilinear", antialias=True)
    return (x - jnp.asarray(config.mean)) / jnp.asarray(config.std)
