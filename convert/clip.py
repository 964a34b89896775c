"""CLIP's two towers as transformers stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convert.rules import Rule, activation_from_hf, activation_to_hf, linear, norm, patches
from spatialllm_jax.models.config import CLIP_MEAN, CLIP_STD, ClipConfig, TextTowerConfig, VisionConfig

# The first is what the hub's files and transformers 4 have; transformers 5 reads both.
PREFIXES = ("vision_model.", "")
# Buffers that older transformers wrote.
IGNORED = (r"(.*\.)?embeddings\.position_ids",)
# What a whole CLIP holds besides its vision tower.
CONTRASTIVE = (r"text_model\..*", r"text_projection\..*", r"visual_projection\..*", r"logit_scale")


def _layers(depth: int) -> list[Rule]:
    layer = "encoder.layers.{i}."
    result = [
        *norm("blocks/norm1", layer + "layer_norm1", depth=depth),
        *norm("blocks/norm2", layer + "layer_norm2", depth=depth),
        *linear("blocks/attention/out", layer + "self_attn.out_proj", depth=depth),
        *linear("blocks/mlp/up", layer + "mlp.fc1", depth=depth),
        *linear("blocks/mlp/down", layer + "mlp.fc2", depth=depth),
    ]
    for ours in ("query", "key", "value"):
        result += linear(f"blocks/attention/{ours}", f"{layer}self_attn.{ours[0]}_proj", depth=depth)
    return result


def rules(config: VisionConfig) -> list[Rule]:
    """The vision tower; sources start at its root ("pre_layrnorm" is transformers' own spelling)."""
    return [
        Rule("class_token", ("embeddings.class_embedding",)),
        Rule("position_table", ("embeddings.position_embedding.weight",)),
        Rule("patch_embed/kernel", ("embeddings.patch_embedding.weight",), patches(config.patch_size)),
        *norm("pre_norm", "pre_layrnorm"),
        *norm("final_norm", "post_layernorm"),
        *_layers(config.depth),
    ]


def contrastive_rules(config: ClipConfig) -> list[Rule]:
    """Both towers of CLIPModel, the projections and the temperature."""
    text = [
        Rule("embedding", ("embeddings.token_embedding.weight",)),
        Rule("position_table", ("embeddings.position_embedding.weight",)),
        *norm("final_norm", "final_layer_norm"),
        *_layers(config.text.depth),
    ]
    return [
        *(rule.nested(f"vision/{config.vision.name}", ("vision_model.",)) for rule in rules(config.vision)),
        *(rule.nested("text", ("text_model.",)) for rule in text),
        *linear("vision_projection", "visual_projection", bias=False),
        *linear("text_projection", "text_projection", bias=False),
        Rule("logit_scale", ("logit_scale",)),
    ]


def config_from_hf(hf: Mapping[str, Any], name: str = "clip") -> VisionConfig:
    """Our configuration of a transformers config.json (model_type clip_vision_model, or clip's part)."""
    hf = hf.get("vision_config", hf)
    return VisionConfig(
        name, "clip", hf.get("image_size", 224), hf.get("patch_size", 32), hf.get("hidden_size", 768),
        hf.get("num_hidden_layers", 12), hf.get("num_attention_heads", 12), hf.get("intermediate_size", 3072),
        activation=activation_from_hf(hf.get("hidden_act", "quick_gelu")), norm_eps=hf.get("layer_norm_eps", 1e-5),
        mean=CLIP_MEAN, std=CLIP_STD)


def contrastive_config_from_hf(hf: Mapping[str, Any], name: str = "clip") -> ClipConfig:
    """Our configuration of a CLIPModel's config.json."""
    text = hf.get("text_config", {})
    return ClipConfig(
        config_from_hf(hf, name),
        TextTowerConfig(
            text.get("vocab_size", 49408), text.get("max_position_embeddings", 77), text.get("hidden_size", 512),
            text.get("num_hidden_layers", 12), text.get("num_attention_heads", 8),
            text.get("intermediate_size", 2048), activation_from_hf(text.get("hidden_act", "quick_gelu")),
            text.get("layer_norm_eps", 1e-5)),
        projection_dim=hf.get("projection_dim", 512))


def config_to_hf(config: VisionConfig) -> dict[str, Any]:
    """config.json of a CLIPVisionModel.

    It has no place for `name`, `feature_layer`, `feature_norm`, `mean` and `std` (the last two go into
    preprocessor_config.json), and its image_size is that of the stored positions.
    """
    return {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"],
            "image_size": config.position_grid * config.patch_size, "patch_size": config.patch_size,
            "hidden_size": config.width, "num_hidden_layers": config.depth, "num_attention_heads": config.num_heads,
            "intermediate_size": config.mlp_dim, "hidden_act": activation_to_hf(config.activation),
            "layer_norm_eps": config.norm_eps}


def contrastive_config_to_hf(config: ClipConfig) -> dict[str, Any]:
    """config.json of a CLIPModel; the end-of-text token is the vocabulary's last one, as in OpenAI's."""
    text = config.text
    parts: dict[str, dict[str, Any]] = {
        "vision_config": config_to_hf(config.vision),
        "text_config": {
            "model_type": "clip_text_model", "vocab_size": text.vocab_size, "max_position_embeddings": text.context,
            "hidden_size": text.width, "num_hidden_layers": text.depth, "num_attention_heads": text.num_heads,
            "intermediate_size": text.mlp_dim, "hidden_act": activation_to_hf(text.activation),
            "layer_norm_eps": text.norm_eps, "bos_token_id": text.vocab_size - 2, "eos_token_id": text.vocab_size - 1}}
    for part in parts.values():
        part.pop("architectures", None)
        part["projection_dim"] = config.projection_dim
    return {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": config.projection_dim, **parts}
