"""The connector: features of all encoders in, visual tokens of the language model's width out."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from spatialllm_jax.models.config import ConnectorConfig
from spatialllm_jax.models.linear import Linear
from spatialllm_jax.parallel.rules import constrain


def resample(features: Float[Array, "M P C"], grid: int) -> Float[Array, "M grid_squared C"]:
    """A square feature map at another grid, bilinearly (antialiased when it shrinks)."""
    side = int(features.shape[1] ** 0.5)
    if side == grid:
        return features
    square = rearrange(features, "m (h w) c -> m h w c", h=side)
    square = jax.image.resize(square, (square.shape[0], grid, grid, square.shape[-1]), "bilinear")
    return rearrange(square, "m h w c -> m (h w) c")


def standardized(features: Float[Array, "M P C"]) -> Float[Array, "M P C"]:
    """Every patch's features at mean 0 and variance 1, in float32."""
    features = features.astype(jnp.float32)
    centred = features - features.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-6)


class Projector(nn.Module):
    """Linear - GELU (exact) - Linear ..., LLaVA-1.5's connector at two layers."""

    config: ConnectorConfig
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "M N C"]) -> Float[Array, "M N D"]:
        c = self.config
        for i in range(c.layers):
            last = i == c.layers - 1
            x = Linear(self.width if last else c.hidden or self.width, dtype=self.dtype, name=f"linear_{i}")(x)
            # Not left to the partitioner: on meshes split over data, fsdp and tensor it gave wrong gradients here.
            x = constrain(x, ("images", None, None if last else "mlp"))
            x = x if last else jax.nn.gelu(x, approximate=False)
        return x


class Connector(nn.Module):
    """Mixes the encoders' features (see `ConnectorConfig.mix`) and projects them.

    Parameters: "linear_0", "linear_1" ... for "concat"; one such subtree per encoder, under its name, for
    "interleave" and "sum".

    Attributes:
        encoders: (name, channels) of every encoder, in the order their channels lie in the features.
        width: the language model's width D.
    """

    config: ConnectorConfig
    encoders: tuple[tuple[str, int], ...]
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "M P C"]) -> Float[Array, "M N D"]:
        c = self.config
        # P and C are checked here because features may come from a file (precomputed encoders).
        expected = (c.grid**2, sum(width for _, width in self.encoders))
        if features.shape[1:] != expected:
            raise ValueError(f"features have shape {features.shape[1:]}, the connector expects {expected}")
        parts, start = [], 0
        for _, width in self.encoders:
            part = features[..., start:start + width]
            parts.append(standardized(part) if c.norm == "layer" else part)
            start += width
        if c.mix == "concat":
            shared = Projector(c, self.width, self.dtype)
            nn.share_scope(self, shared)
            return shared(self._merge(jnp.concatenate(parts, axis=-1)))
        tokens = [Projector(c, self.width, self.dtype, name=name)(self._merge(part))
                  for (name, _), part in zip(self.encoders, parts, strict=True)]
        if c.mix == "sum":
            return sum(tokens[1:], start=tokens[0])
        return rearrange(jnp.stack(tokens, axis=2), "m n e d -> m (n e) d")

    def _merge(self, x: Float[Array, "M P C"]) -> Float[Array, "M N C_merged"]:
        """merge x merge neighbours side by side in the channels."""
        return rearrange(x, "m (h p w q) c -> m (h w) (p q c)", p=self.config.merge, q=self.config.merge,
                         h=self.config.grid // self.config.merge)
