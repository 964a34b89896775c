"""The whole model, whatever its encoders and connector, for `convert.torch_module`, our own PyTorch module."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from convert import clip, dinov2, llama, mae
from convert.rules import Rule, linear
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import ConnectorConfig, ModelConfig, VisionConfig

IGNORED = clip.IGNORED + dinov2.IGNORED + llama.IGNORED
# Prefixes behind "vision.<name>.": first what the export writes, which transformers 4 and 5 both read.
_PREFIXES = {"clip": clip.PREFIXES, "dinov2": ("",), "mae": ("",)}
_RULES = {"clip": clip.rules, "dinov2": dinov2.rules, "mae": mae.rules}
_TO_HF = {"clip": clip.config_to_hf, "dinov2": dinov2.config_to_hf, "mae": mae.config_to_hf}
_FROM_HF = {"clip_vision_model": clip.config_from_hf, "dinov2": dinov2.config_from_hf,
            "dinov2_with_registers": dinov2.config_from_hf, "vit_mae": mae.config_from_hf}
# What a transformers config does not say of an encoder.
_OURS = ("name", "image_size", "pretrain_grid", "feature_layer", "feature_norm", "mean", "std")


def rules(config: ModelConfig) -> list[Rule]:
    """The families' own rules under "vision.<name>.", "connector." and "language_model."."""
    result = []
    for encoder in config.vision:
        prefixes = tuple(f"vision.{encoder.name}.{prefix}" for prefix in _PREFIXES[encoder.kind])
        result += [rule.nested(f"vision/{encoder.name}", prefixes) for rule in _RULES[encoder.kind](encoder)]
    owners = [""] if config.connector.mix == "concat" else [f"{encoder.name}/" for encoder in config.vision]
    for owner in owners:
        for i in range(config.connector.layers):
            path = f"connector/{owner}linear_{i}"
            result += linear(path, path.replace("/", "."))
    return result + [rule.nested("llm", ("language_model.",)) for rule in llama.rules(config.llm)]


def constants(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Tensors of zeros that transformers expects and that mean nothing here: name -> shape."""
    return {f"vision.{encoder.name}.{name}": shape for encoder in config.vision if encoder.kind == "dinov2"
            for name, shape in dinov2.constants(encoder).items()}


def config_from_hf(hf: Mapping[str, Any]) -> ModelConfig:
    """Our configuration of config.json (model_type spatialllm).

    Raises:
        UserError: it names an encoder or a connector setting that does not exist.
    """
    vision = tuple(_encoder(entry) for entry in hf["vision"])
    try:
        connector = ConnectorConfig(**hf["connector"])
    except TypeError as error:
        raise UserError(f"config.json: connector does not fit ({error}); export the model again") from None
    return ModelConfig(vision, connector, llama.config_from_hf(hf["text_config"]))


def _encoder(entry: Mapping[str, Any]) -> VisionConfig:
    kind = entry["config"].get("model_type")
    if kind not in _FROM_HF:
        raise UserError(f"config.json: vision encoder {entry['name']!r} is a {kind!r}; {', '.join(_FROM_HF)} are known")
    ours: dict[str, Any] = {key: tuple(entry[key]) if isinstance(entry[key], list) else entry[key] for key in _OURS}
    return dataclasses.replace(_FROM_HF[kind](entry["config"]), **ours)


def config_to_hf(config: ModelConfig, image_token_id: int | None = None) -> dict[str, Any]:
    """config.json for `convert.torch_module`. How the model is computed (`dtype`, `remat`, `attention`, `unroll`,
    LoRA) and how it was initialised have no place in it.

    Args:
        image_token_id: id whose places in a prompt the visual tokens take; it needs no embedding. Default: the
            first beyond the vocabulary.
    """
    if config.tiling is not None:
        raise UserError("tiling has no place in the PyTorch module; it is for models of LLaVA's shape (one CLIP tower)")
    vision = []
    for encoder in config.vision:
        if not encoder.name.isidentifier():
            raise UserError(f"vision encoder {encoder.name!r}: PyTorch needs a name of letters, digits and "
                            "underscores; rename it")
        part = _TO_HF[encoder.kind](encoder)
        del part["architectures"]
        ours = {key: getattr(encoder, key) for key in _OURS}
        vision.append({**ours, "mean": list(encoder.mean), "std": list(encoder.std), "config": part})
    text = llama.config_to_hf(config.llm)
    del text["architectures"]
    return {
        "model_type": "spatialllm", "architectures": ["SpatialLLMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_spatialllm.SpatialLLMConfig",
                     "AutoModelForCausalLM": "modeling_spatialllm.SpatialLLMForCausalLM"},
        "vision": vision, "connector": dataclasses.asdict(config.connector), "text_config": text,
        "image_token_id": config.llm.vocab_size if image_token_id is None else image_token_id,
        "image_seq_length": config.connector.num_tokens, "tie_word_embeddings": config.llm.tie_embeddings}
