"""Llama-architecture decoders (Llama, Vicuna, SmolLM2) as transformers stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convert.rules import Rule, linear, norm
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import LlamaConfig, RopeScaling

# Buffers that older transformers wrote.
IGNORED = (r"(.*\.)?rotary_emb\.inv_freq",)


def rules(config: LlamaConfig, body: tuple[str, ...] = ("model.",), head: tuple[str, ...] = ("",)) -> list[Rule]:
    """The decoder.

    Args:
        body: prefixes under which embeddings and layers may lie.
        head: prefixes under which lm_head may lie.
    """
    layer, depth = "layers.{i}.", config.depth
    inner = [
        Rule("embedding", ("embed_tokens.weight",)),
        *norm("norm", "norm", bias=False),
        *norm("layers/norm1", layer + "input_layernorm", depth=depth, bias=False),
        *norm("layers/norm2", layer + "post_attention_layernorm", depth=depth, bias=False),
    ]
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
        inner += linear(f"layers/attention/{ours}", f"{layer}self_attn.{theirs}_proj", depth=depth, bias=False)
    for ours in ("gate", "up", "down"):
        inner += linear(f"layers/mlp/{ours}", f"{layer}mlp.{ours}_proj", depth=depth, bias=False)
    result = [rule.nested("", body) for rule in inner]
    if not config.tie_embeddings:
        result += [rule.nested("", head) for rule in linear("head", "lm_head", bias=False)]
    return result


def config_from_hf(hf: Mapping[str, Any]) -> LlamaConfig:
    """Our configuration of a transformers config.json (model_type llama), of version 4 or 5.

    Raises:
        UserError: it asks for what this decoder does not have (biases, another rope scaling).
    """
    for key in ("attention_bias", "mlp_bias"):
        if hf.get(key):
            raise UserError(f"config.json: {key} is true, but the Llama decoder here has no biases")
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    scaling = None
    if kind == "llama3":
        scaling = RopeScaling(rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"],
                              rope["original_max_position_embeddings"])
    elif kind != "default":
        raise UserError(f"config.json: rope type {kind!r} is not supported; default and llama3 are")
    heads = hf["num_attention_heads"]
    return LlamaConfig(
        hf["vocab_size"], hf["hidden_size"], hf["num_hidden_layers"], heads,
        hf.get("num_key_value_heads") or heads, hf.get("head_dim") or hf["hidden_size"] // heads,
        hf["intermediate_size"], rope_theta=float(rope.get("rope_theta", hf.get("rope_theta", 10000.0))),
        rope_scaling=scaling, norm_eps=hf.get("rms_norm_eps", 1e-6),
        tie_embeddings=bool(hf.get("tie_word_embeddings", False)))


def config_to_hf(config: LlamaConfig) -> dict[str, Any]:
    """config.json of a LlamaForCausalLM.

    Rotary positions are written in both spellings: rope_theta and rope_scaling for transformers 4,
    rope_parameters for 5. The initialisers are not kept, and the longest context is not known here: it is that
    of the rope scaling, or 4096, which limits nothing.
    """
    scaling: dict[str, Any] | None = None
    longest = 4096
    if (s := config.rope_scaling) is not None:
        scaling = {"rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low_freq_factor,
                   "high_freq_factor": s.high_freq_factor,
                   "original_max_position_embeddings": s.original_max_positions}
        longest = int(s.original_max_positions * s.factor)
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": config.vocab_size,
            "hidden_size": config.width, "num_hidden_layers": config.depth, "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim,
            "intermediate_size": config.mlp_dim, "hidden_act": "silu", "rms_norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tie_embeddings, "max_position_embeddings": longest,
            "rope_theta": config.rope_theta, "rope_scaling": scaling,
            "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": config.rope_theta},
            "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
