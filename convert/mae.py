"""MAE's encoder (ViTMAEModel, or the `vit.` part of ViTMAEForPreTraining) as transformers stores it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convert.rules import TABLE, TOKEN, Rule, activation_from_hf, activation_to_hf, linear, norm, patches
from spatialllm_jax.models.config import VisionConfig

PREFIXES = ("", "vit.")
# The decoder only rebuilds pixels in MAE's own pre-training.
IGNORED = (r"decoder\..*",)


def rules(config: VisionConfig) -> list[Rule]:
    """Sources start at the encoder's root; transformers 4 names first, transformers 5's second."""
    old, new, depth = "encoder.layer.{i}.", "layers.{i}.", config.depth
    result = [
        Rule("class_token", ("embeddings.cls_token",), TOKEN),
        Rule("position_table", ("embeddings.position_embeddings",), TABLE),
        Rule("patch_embed/kernel", ("embeddings.patch_embeddings.projection.weight",), patches(config.patch_size)),
        Rule("patch_embed/bias", ("embeddings.patch_embeddings.projection.bias",)),
        *norm("final_norm", "layernorm"),
        *norm("blocks/norm1", old + "layernorm_before", new + "layernorm_before", depth=depth),
        *norm("blocks/norm2", old + "layernorm_after", new + "layernorm_after", depth=depth),
        *linear("blocks/attention/out", old + "attention.output.dense", new + "attention.o_proj", depth=depth),
        *linear("blocks/mlp/up", old + "intermediate.dense", new + "mlp.fc1", depth=depth),
        *linear("blocks/mlp/down", old + "output.dense", new + "mlp.fc2", depth=depth),
    ]
    for ours in ("query", "key", "value"):
        result += linear(f"blocks/attention/{ours}", f"{old}attention.attention.{ours}",
                         f"{new}attention.{ours[0]}_proj", depth=depth)
    return result


def config_from_hf(hf: Mapping[str, Any], name: str = "mae") -> VisionConfig:
    """Our configuration of a transformers config.json (model_type vit_mae)."""
    return VisionConfig(
        name, "mae", hf["image_size"], hf["patch_size"], hf["hidden_size"], hf["num_hidden_layers"],
        hf["num_attention_heads"], hf["intermediate_size"], activation=activation_from_hf(hf.get("hidden_act", "gelu")),
        norm_eps=hf.get("layer_norm_eps", 1e-12), pretrain_grid=hf["image_size"] // hf["patch_size"])


def config_to_hf(config: VisionConfig) -> dict[str, Any]:
    """config.json of a ViTMAEModel that masks nothing; see `convert.clip.config_to_hf` for what it cannot hold."""
    return {"model_type": "vit_mae", "architectures": ["ViTMAEModel"], "mask_ratio": 0.0,
            "image_size": config.position_grid * config.patch_size, "patch_size": config.patch_size,
            "hidden_size": config.width, "num_hidden_layers": config.depth, "num_attention_heads": config.num_heads,
            "intermediate_size": config.mlp_dim, "hidden_act": activation_to_hf(config.activation),
            "layer_norm_eps": config.norm_eps}
