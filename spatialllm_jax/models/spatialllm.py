"""SpatialLLM: vision encoders, connector and language model as one module."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, UInt8

from spatialllm_jax.models.attention import Mask, self_mask
from spatialllm_jax.models.config import LoRAConfig, ModelConfig, VisionConfig
from spatialllm_jax.models.connector import Connector, resample
from spatialllm_jax.models.image_slots import encode_present
from spatialllm_jax.models.linear import Params
from spatialllm_jax.models.llama import Cache, Llama
from spatialllm_jax.models.vit import ViT, normalize
from spatialllm_jax.parallel.rules import constrain


class VisionTowers(nn.Module):
    """The encoders, each under its own name; each resizes and normalises the images for itself."""

    encoders: tuple[VisionConfig, ...]
    grid: int
    dtype: Any
    remat: str
    lora: LoRAConfig | None
    attention: str = "xla"

    @nn.compact
    def __call__(self, images: UInt8[Array, "M H W 3"], deterministic: bool = True) -> Float[Array, "M P C"]:
        """Features resampled to `grid` x `grid`, the encoders' channels side by side."""
        features = [
            resample(ViT(config, self.dtype, self.remat, self.lora, self.attention, name=config.name)(
                normalize(images, config), deterministic=deterministic), self.grid)
            for config in self.encoders]
        return jnp.concatenate(features, axis=-1)


class SpatialLLM(nn.Module):
    """The whole model.

    Parameters: {"vision": {<encoder>: ...}, "connector": ..., "llm": ...}, and with tiling "image_newline" `[D]`.
    Nothing is frozen here: training decides what gets gradients. `listed` is of the language model, see `Llama`.
    """

    config: ModelConfig
    listed: bool = False

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        self.vision = VisionTowers(c.vision, c.connector.grid, dtype, c.remat, c.vision_lora, c.attention)
        self.connector = Connector(c.connector, tuple((v.name, v.width) for v in c.vision), c.llm.width, dtype)
        self.llm = Llama(c.llm, dtype, c.remat, c.attention, c.llm_lora, c.unroll, c.llm_quantize, self.listed)
        if c.tiling is not None:
            self.image_newline = self.param("image_newline", nn.initializers.normal(c.llm.width**-0.5),
                                            (c.llm.width,), jnp.float32)

    def encode_images(self, images: UInt8[Array, "M H W 3"], deterministic: bool = True) -> Float[Array, "M P C"]:
        """Features of all encoders, `P = connector.grid ** 2`, channels side by side (whatever the mix)."""
        return self.vision(images, deterministic)

    def connect(self, features: Float[Array, "M P C"]) -> Float[Array, "M N D"]:
        """Visual tokens of `encode_images`' features, `N = connector.num_tokens`."""
        return self.connector(features)

    def visual_tokens(
        self, images: UInt8[Array, "B N H W 3"] | None = None, features: Float[Array, "B N P C"] | None = None,
        image_mask: Bool[Array, "B N"] | None = None, deterministic: bool = True,
    ) -> Float[Array, "B N_tokens D"]:
        """Every row's visual tokens one image after the other, from images or precomputed features.

        With tiling, one more token stands behind them all: the line break that ends a row of tokens.
        """
        if features is None:
            if images is None:
                raise ValueError("visual_tokens needs images or features")
            flat = self._encode_slots(images, image_mask, deterministic)
            rows = images.shape[0]
        else:
            flat = rearrange(features, "b n p c -> (b n) p c")
            rows = features.shape[0]
        visual = constrain(self.connect(flat), ("batch", None, None))    # images spread further than rows
        visual = rearrange(visual, "(b n) t d -> b n t d", b=rows)
        if image_mask is not None:
            visual = jnp.where(image_mask[:, :, None, None], visual, 0.0)
        visual = rearrange(visual, "b n t d -> b (n t) d")
        if self.config.tiling is None:
            return visual
        newline = jnp.broadcast_to(self.image_newline.astype(visual.dtype), (rows, 1, visual.shape[-1]))
        return jnp.concatenate([visual, newline], axis=1)

    def _encode_slots(self, images: Array, image_mask: Array | None, deterministic: bool) -> Float[Array, "M P C"]:
        """Features of all slots one after the other; those that `image_mask` calls empty are skipped where they can be
        many: encoders run on every slot when there is one per row, or when their LoRA draws dropout."""
        if image_mask is None or images.shape[1] == 1 or self.config.vision_lora is not None:
            return self.encode_images(rearrange(images, "b n h w c -> (b n) h w c"), deterministic)
        towers, variables = self.vision.unbind()

        def encode(params: Params, images: Array) -> Array:
            features: Any = towers.apply({"params": params}, images)
            return features

        features = encode_present(encode, dict(variables["params"]), images, image_mask)
        return rearrange(features, "b n p c -> (b n) p c")

    def embed(
        self, tokens: Int[Array, "B T"], visual: Float[Array, "B N_tokens D"] | None = None,
        image_index: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Token embeddings, with `visual[image_index]` in the places where image_index >= 0."""
        text = self.llm.embed(tokens)
        if visual is None or image_index is None:
            return text
        patches = jnp.take_along_axis(visual, jnp.maximum(image_index, 0)[..., None], axis=1)
        patches = constrain(patches.astype(text.dtype), ("batch", "length", None))
        return jnp.where((image_index >= 0)[..., None], patches, text)

    def read_patches(
        self, images: UInt8[Array, "B N H W 3"] | None = None, features: Float[Array, "B N P C"] | None = None,
        image_mask: Bool[Array, "B N"] | None = None, deterministic: bool = True,
    ) -> Float[Array, "B N_tokens D"]:
        """What `logits` reads words from in the visual tokens themselves: the connector's outputs under the
        language model's final norm, without any of its layers."""
        return self.llm.read(self.visual_tokens(images, features, image_mask, deterministic))

    def __call__(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"],
        branch_ids: Int[Array, "B T"], image_index: Int[Array, "B T"],
        images: UInt8[Array, "B N H W 3"] | None = None, features: Float[Array, "B N P C"] | None = None,
        image_mask: Bool[Array, "B N"] | None = None, deterministic: bool = True,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm; see `data.batch.Batch` for the arguments.

        With neither images nor features the rows are taken as text alone. LoRA dropout needs
        `deterministic=False` and an rng named "dropout".
        """
        visual = None
        if images is not None or features is not None:
            visual = self.visual_tokens(images, features, image_mask, deterministic)
        return self._hidden(tokens, positions, segment_ids, branch_ids, image_index, visual, deterministic)

    def with_patches(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"],
        branch_ids: Int[Array, "B T"], image_index: Int[Array, "B T"],
        images: UInt8[Array, "B N H W 3"] | None = None, features: Float[Array, "B N P C"] | None = None,
        image_mask: Bool[Array, "B N"] | None = None, deterministic: bool = True,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B N_tokens D"]]:
        """`__call__` and `read_patches` with one pass through the connector."""
        visual = self.visual_tokens(images, features, image_mask, deterministic)
        return self._hidden(tokens, positions, segment_ids, branch_ids, image_index, visual, deterministic), \
            self.llm.read(visual)

    def _hidden(self, tokens: Array, positions: Array, segment_ids: Array, branch_ids: Array, image_index: Array,
                visual: Array | None, deterministic: bool) -> Array:
        hidden, _ = self.llm(self.embed(tokens, visual, image_index), positions, self_mask(segment_ids, branch_ids),
                             deterministic=deterministic)
        return hidden

    def decode(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], mask: Mask, cache: Cache,
        slots: Int[Array, ""] | Int[Array, "B T"] | int, visual: Float[Array, "B N_tokens D"] | None = None,
        image_index: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """T tokens through the cache, for prefill (with `visual`) and generation; see `Llama.__call__`."""
        hidden, updated = self.llm(self.embed(tokens, visual, image_index), positions, mask, cache, slots)
        assert updated is not None
        return hidden, updated

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Next-token logits in float32. `[B, T, V]` is large: training passes it chunks."""
        return self.llm.logits(hidden)

    def everything(self) -> Array:
        """Touches every parameter once; what `init` runs."""
        size = self.config.vision[0].image_size
        visual = self.visual_tokens(jnp.zeros((1, 1, size, size, 3), jnp.uint8))
        tokens = jnp.zeros((1, 2), jnp.int32)
        hidden, _ = self.llm(self.embed(tokens, visual, tokens), tokens, self_mask(tokens + 1))
        return self.logits(hidden)


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Random float32 parameters of `SpatialLLM(config)`; jitted, so only parameters are ever allocated."""
    return _init(config, key)


@partial(jax.jit, static_argnums=0)
def _init(config: ModelConfig, key: jax.Array) -> Params:
    return SpatialLLM(config).init(key, method="everything")["params"]


def abstract_params(config: ModelConfig) -> Any:
    """Shapes and types of the parameters, without memory: a tree of `jax.ShapeDtypeStruct`."""
    return jax.eval_shape(partial(init_params, config), jax.random.key(0))
