"""CLIP's text tower, and both towers together for stage 0's contrastive objective."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from spatialllm_jax.models.attention import self_mask
from spatialllm_jax.models.config import ClipConfig, LoRAConfig, TextTowerConfig, VisionConfig
from spatialllm_jax.models.linear import Linear, Params
from spatialllm_jax.models.stack import stacked
from spatialllm_jax.models.vit import Block, ViT, layer_norm, normalize


class TextTower(nn.Module):
    """Causal transformer over token ids."""

    config: TextTowerConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    attention: str = "xla"

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "M T"], eot_index: Int[Array, " M"], states: bool = False,
    ) -> Float[Array, "M D"]:
        """The normed state at the end-of-text token, `[M, D]`; with `states`, all states `[L + 1, M, T, D]`.

        Padding behind `eot_index` needs no mask: attention is causal.
        """
        c = self.config
        table = self.param("embedding", nn.initializers.normal(0.02), (c.vocab_size, c.width), jnp.float32)
        positions = self.param("position_table", nn.initializers.normal(0.01), (c.context, c.width), jnp.float32)
        x = jnp.take(table, tokens, axis=0) + positions[: tokens.shape[1]]
        embedded = x = x.astype(self.dtype)
        blocks = stacked(Block, c.depth, (nn.broadcast, nn.broadcast), self.remat, static_argnums=(3,))
        x, every = blocks(
            num_heads=c.num_heads, mlp_dim=c.mlp_dim, depth=c.depth, activation=c.activation,
            norm_eps=c.norm_eps, dtype=self.dtype, attention=self.attention, collect=states,
            name="blocks")(x, self_mask(jnp.ones_like(tokens)), True)
        if states:
            return jnp.concatenate([embedded[None], every])
        pooled = jnp.take_along_axis(x, eot_index[:, None, None], axis=1)[:, 0]
        return layer_norm(c.norm_eps, self.dtype, "final_norm")(pooled)


class _Vision(nn.Module):
    """The tower under its own name, so that it is the very subtree of SpatialLLM's params["vision"]."""

    config: VisionConfig
    dtype: Any
    remat: str
    lora: LoRAConfig | None
    attention: str

    @nn.compact
    def __call__(self, images: Array, deterministic: bool) -> Float[Array, "M D"]:
        tower = ViT(self.config, self.dtype, self.remat, self.lora, self.attention, name=self.config.name)
        return tower(normalize(images, self.config), "pooled", deterministic)


class CLIP(nn.Module):
    """Image and text embeddings in one space.

    Parameters: {"vision": {<name>: as in SpatialLLM}, "text": ..., "vision_projection", "text_projection",
    "logit_scale"}.
    """

    config: ClipConfig

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        self.vision = _Vision(c.vision, dtype, c.remat, c.vision_lora, c.attention)
        self.text = TextTower(c.text, dtype, c.remat, c.attention)
        self.vision_projection = Linear(c.projection_dim, use_bias=False, dtype=dtype)
        self.text_projection = Linear(c.projection_dim, use_bias=False, dtype=dtype)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(c.logit_scale_init), (), jnp.float32)

    def __call__(
        self, images: UInt8[Array, "M H W 3"], tokens: Int[Array, "N T"], eot_index: Int[Array, " N"],
        deterministic: bool = True,
    ) -> tuple[Float[Array, "M E"], Float[Array, "N E"], Float[Array, ""]]:
        """Unit-length embeddings of images and texts in float32, and the factor exp(logit_scale) on their
        dot products."""
        return (self.embed_images(images, deterministic), self.embed_texts(tokens, eot_index),
                jnp.exp(self.logit_scale))

    def embed_images(self, images: UInt8[Array, "M H W 3"], deterministic: bool = True) -> Float[Array, "M E"]:
        """Unit-length embeddings of images."""
        return _unit(self.vision_projection(self.vision(images, deterministic)))

    def embed_texts(self, tokens: Int[Array, "N T"], eot_index: Int[Array, " N"]) -> Float[Array, "N E"]:
        """Unit-length embeddings of texts."""
        return _unit(self.text_projection(self.text(tokens, eot_index)))


def _unit(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def init_clip(config: ClipConfig, key: jax.Array) -> Params:
    """Random float32 parameters of `CLIP(config)`."""
    return _init(config, key)


@partial(jax.jit, static_argnums=0)
def _init(config: ClipConfig, key: jax.Array) -> Params:
    size = config.vision.image_size
    images, tokens = jnp.zeros((1, size, size, 3), jnp.uint8), jnp.zeros((1, 2), jnp.int32)
    return CLIP(config).init(key, images, tokens, jnp.zeros((1,), jnp.int32))["params"]


def abstract_clip(config: ClipConfig) -> Any:
    """Shapes and types of `CLIP(config)`'s parameters: a tree of `jax.ShapeDtypeStruct`."""
    return jax.eval_shape(partial(init_clip, config), jax.random.key(0))
