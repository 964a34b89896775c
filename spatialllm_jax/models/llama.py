"""Llama: grouped-query attention, rotary positions, SwiGLU; with an optional key/value cache."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from spatialllm_jax.models.attention import Mask, attention
from spatialllm_jax.models.cache import Cache
from spatialllm_jax.models.config import LlamaConfig, LoRAConfig
from spatialllm_jax.models.linear import Linear
from spatialllm_jax.models.stack import stacked
from spatialllm_jax.parallel.rules import constrain


def rope_frequencies(config: LlamaConfig) -> Float[np.ndarray, " half"]:
    """Rotary frequencies theta^(-2i/d), with Llama 3.1's scaling when configured: wavelengths beyond
    original / low_freq_factor are stretched by `factor`, those under original / high_freq_factor are kept,
    and the ones between are blended."""
    frequencies = config.rope_theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    if (s := config.rope_scaling) is not None:
        turns = s.original_max_positions * frequencies / (2 * np.pi)
        keep = np.clip((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0)
        frequencies = frequencies * (keep + (1 - keep) / s.factor)
    return frequencies.astype(np.float32)


def rotate(x: Float[Array, "B T H Dh"], cos: Float[Array, "B T half"], sin: Float[Array, "B T half"],
           ) -> Float[Array, "B T H Dh"]:
    """Rotary positions on split halves (transformers' layout), in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class LlamaLayer(nn.Module):
    """One decoder layer."""

    config: LlamaConfig
    dtype: Any
    attention: str
    lora: LoRAConfig | None
    quantize: str
    collect: bool = False

    @nn.compact
    def __call__(
        self, carry: tuple[Float[Array, "B T D"], Cache | None], layer: Int[Array, ""] | int | None,
        rope: tuple[Array, Array], mask: Mask, slots: Array | int | None, deterministic: bool,
    ) -> tuple[tuple[Float[Array, "B T D"], Cache | None], Array | None]:
        c = self.config
        x, cache = carry
        y = nn.RMSNorm(epsilon=c.norm_eps, dtype=self.dtype, name="norm1")(x)
        y, cache = LlamaAttention(c, self.dtype, self.attention, self.lora, self.quantize, name="attention")(
            y, rope, mask, cache, layer, slots, deterministic)
        x = x + y
        y = nn.RMSNorm(epsilon=c.norm_eps, dtype=self.dtype, name="norm2")(x)
        y = LlamaMLP(c, self.dtype, self.lora, self.quantize, name="mlp")(y, deterministic)
        x = constrain(x + y, ("batch", "length", None))
        return (x, cache), x if self.collect else None


class LlamaAttention(nn.Module):
    """Grouped-query attention with rotary positions; writes the new keys into the cache when there is one."""

    config: LlamaConfig
    dtype: Any
    attention: str
    lora: LoRAConfig | None
    quantize: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], rope: tuple[Array, Array], mask: Mask, cache: Cache | None,
        layer: Int[Array, ""] | int | None, slots: Array | int | None, deterministic: bool,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        c = self.config

        def linear(name: str, heads: int, init: nn.initializers.Initializer | None = None) -> Linear:
            return Linear(heads * c.head_dim, use_bias=False, dtype=self.dtype, lora=self.lora, kernel_init=init,
                          quantize=self.quantize, name=name)

        def project(to: Linear, along: str | None = None) -> Float[Array, "B T heads Dh"]:
            y = rearrange(to(x, deterministic), "b t (h d) -> b t h d", d=c.head_dim)
            return constrain(y, ("batch", along, "heads", None))

        match = c.attention_init == "match" and self.quantize == "none"  # quantised kernels are never initialised
        query, value = linear("query", c.num_heads), linear("value", c.num_kv_heads)
        # Split along the row, queries stay where they are and see all keys and values, which are gathered: with
        # grouped queries those are the smaller part, and the mask needs no ring.
        q = checkpoint_name(rotate(project(query, "length"), *rope), "query")
        keys = _first_of_group(_kernel_of(query), c) if match else None
        k = checkpoint_name(rotate(project(linear("key", c.num_kv_heads, keys)), *rope), "key")
        v = checkpoint_name(project(value), "value")
        in_order = cache is None
        if cache is not None:
            if slots is None or layer is None:
                raise ValueError("a cache needs slots, where the new keys and values go")
            cache = cache.written(layer, k, v, slots)
            k, v = (x.astype(self.dtype) for x in cache.of(layer))
            in_order = isinstance(slots, int) and slots + x.shape[1] == k.shape[1]      # prefill: up to the last slot
        out = rearrange(attention(q, k, v, mask, self.attention, in_order=in_order), "b t h d -> b t (h d)")
        back = _transposed(_kernel_of(value), c) if match else None
        out = Linear(c.width, use_bias=False, dtype=self.dtype, lora=self.lora, init_scale=0.5 / c.depth,
                     kernel_init=back, quantize=self.quantize, name="out")(out, deterministic)
        return out, cache


def _kernel_of(linear: Linear) -> Float[Array, "i o"]:
    """The kernel of a linear layer that has been called."""
    kernel: Float[Array, "i o"] = linear.variables["params"]["kernel"]
    return kernel


def _first_of_group(query: Float[Array, "D HDh"], config: LlamaConfig) -> nn.initializers.Initializer:
    """Initialises keys with the kernel of the first query head that each of them serves."""
    heads = rearrange(query, "i (k g d) -> i k g d", k=config.num_kv_heads, d=config.head_dim)
    kernel = rearrange(heads[:, :, 0], "i k d -> i (k d)")
    return lambda key, shape, dtype=jnp.float32: kernel.astype(dtype)


def _transposed(value: Float[Array, "D KDh"], config: LlamaConfig) -> nn.initializers.Initializer:
    """Initialises the output of every head with the transpose of its values, at the usual variance."""
    heads = jnp.repeat(rearrange(value, "i (k d) -> k d i", d=config.head_dim),
                       config.num_heads // config.num_kv_heads, axis=0)
    scale = (0.5 / config.depth * config.width / (config.num_heads * config.head_dim)) ** 0.5
    return lambda key, shape, dtype=jnp.float32: (scale * rearrange(heads, "h d o -> (h d) o")).astype(dtype)


class LlamaMLP(nn.Module):
    """SwiGLU: down(silu(gate) * up)."""

    config: LlamaConfig
    dtype: Any
    lora: LoRAConfig | None
    quantize: str

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], deterministic: bool) -> Float[Array, "B T D"]:
        def linear(features: int, name: str, scale: float = 1.0) -> Linear:
            return Linear(features, use_bias=False, dtype=self.dtype, lora=self.lora, init_scale=scale,
                          quantize=self.quantize, name=name)

        c = self.config
        gate = checkpoint_name(linear(c.mlp_dim, "gate")(x, deterministic), "mlp_gate")
        hidden = jax.nn.silu(gate) * linear(c.mlp_dim, "up")(x, deterministic)
        hidden = constrain(hidden, ("batch", "length", "mlp"))
        return linear(c.width, "down", 0.5 / c.depth)(hidden, deterministic)


class Llama(nn.Module):
    """The decoder. Parameters: "embedding" `[V, D]`, "layers" (stacked), "norm", and "head" unless tied.

    `listed`: the layers are "layer0", "layer1" ... instead, each with arrays of its own (`list_layers`). On CPUs a scan
    copies every layer's parameters out of the stack before it uses them, which costs more than generating a token with
    them does. Compilation grows with the depth.

    `lora` and `quantize` are of the layers' linears; embedding and head are the ends of the vocabulary and stay whole.
    """

    config: LlamaConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    attention: str = "xla"
    lora: LoRAConfig | None = None
    unroll: int = 1
    quantize: str = "none"
    listed: bool = False

    def setup(self) -> None:
        c = self.config
        self.embedding = self.param("embedding", nn.initializers.normal(c.embedding_init),
                                    (c.vocab_size, c.width), jnp.float32)
        self.norm = nn.RMSNorm(epsilon=c.norm_eps, dtype=self.dtype)
        if not c.tie_embeddings:
            self.head = Linear(c.vocab_size, use_bias=False, dtype=self.dtype)

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Embeddings of token ids."""
        # Whole rows first: looking up rows split over "fsdp" makes the partitioner replicate the result.
        table = constrain(self.embedding.astype(self.dtype), ("vocab", None))
        return constrain(jnp.take(table, tokens, axis=0), ("batch", "length", None))

    @nn.compact
    def __call__(
        self, embeddings: Float[Array, "B T D"], positions: Int[Array, "B T"], mask: Mask,
        cache: Cache | None = None, slots: Int[Array, ""] | Int[Array, "B T"] | int | None = None,
        deterministic: bool = True, states: bool = False,
    ) -> tuple[Array, Cache | None]:
        """Runs the layers.

        Args:
            positions: rotary positions.
            mask: who sees whom; S is T without a cache, and the cache's length with one.
            cache: attention runs over all of its slots, the T new keys and values written into them first.
            slots: the first of T slots to write, or the slot of every token (S or more: it is not written).
            states: return every hidden state instead, `[L + 1, B, T, D]`: embeddings first, none normed.

        Returns:
            The hidden states after the final norm `[B, T, D]`, and the updated cache.
        """
        c = self.config
        angles = positions[..., None].astype(jnp.float32) * rope_frequencies(c)
        settings = (c, self.dtype, self.attention, self.lora, self.quantize, states)
        about = (jnp.cos(angles), jnp.sin(angles)), mask, slots, deterministic
        carry: Any = embeddings.astype(self.dtype), cache
        every: Any = None
        if self.listed:
            outputs: list[Any] = []
            for layer in range(c.depth):
                carry, output = LlamaLayer(*settings, name=f"layer{layer}")(carry, layer, *about)
                outputs.append(output)
            every = jnp.stack(outputs) if states else None
        else:
            layers = stacked(LlamaLayer, c.depth, (0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
                             self.remat, static_argnums=(6,), unroll=self.unroll)
            # The cache is carried, not scanned over: each layer then writes its few slots in place.
            carry, every = layers(*settings, name="layers")(
                carry, None if cache is None else jnp.arange(c.depth), *about)
        x, cache = carry
        if states:
            return jnp.concatenate([embeddings[None].astype(self.dtype), every]), cache
        return constrain(self.norm(x), ("batch", "length", None)), cache

    def read(self, embeddings: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Embeddings under the final norm, without any layer: what `logits` would say of the input itself."""
        return self.norm(embeddings.astype(self.dtype))

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Next-token logits of normed hidden states, in float32, every row on the devices that hold it.

        Said explicitly, since within loops and conditionals the partitioner goes by the head alone: split over "fsdp"
        along D, it had every device make a part of everybody's logits, and exchanged those instead of the kernel.
        """
        rows = ("batch", "length")[:hidden.ndim - 1] if hidden.ndim <= 3 else (None,) * (hidden.ndim - 1)
        hidden = constrain(hidden, (*rows, None))
        if self.config.tie_embeddings:
            table = self.embedding.astype(self.dtype)
            logits = jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)
        else:
            logits = self.head(hidden).astype(jnp.float32)
        return constrain(logits, (*rows, "vocab"))


def list_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a `Llama` as it takes them when it is `listed`."""
    rest = {name: value for name, value in params.items() if name != "layers"}
    depth = len(jax.tree.leaves(params["layers"])[0])
    return rest | {f"layer{k}": jax.tree.map(operator.itemgetter(k), params["layers"]) for k in range(depth)}
