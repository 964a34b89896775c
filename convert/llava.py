"""LLaVA-1.5 (one CLIP tower): transformers' LlavaForConditionalGeneration and the original repository's layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convert import clip, llama
from convert.rules import Rule, linear
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import ConnectorConfig, ModelConfig

IGNORED = clip.IGNORED + llama.IGNORED

# First what transformers writes to files, then its names in memory, then the original LLaVA's.
VISION = ("vision_tower.vision_model.", "vision_tower.", "model.vision_tower.", "model.vision_tower.vision_model.",
          "model.vision_tower.vision_tower.vision_model.")
PROJECTOR = ("multi_modal_projector.linear_", "model.multi_modal_projector.linear_")
BODY = ("language_model.model.", "model.language_model.", "model.")
HEAD = ("language_model.", "")
# Published files state only where their text_config differs from these, LlamaConfig's defaults in transformers.
_LLAMA_DEFAULTS = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                   "num_attention_heads": 32, "rms_norm_eps": 1e-6}


def unlike(config: ModelConfig) -> str | None:
    """What of the model LLaVA's format has no place for, or None."""
    tower, connector = config.vision[0], config.connector
    checks = {
        f"the encoders {', '.join(encoder.name for encoder in config.vision)}": len(config.vision) != 1,
        f"an encoder of kind {tower.kind}": tower.kind != "clip",
        f"connector.mix {connector.mix}": connector.mix != "concat",
        f"connector.layers {connector.layers}": connector.layers != 2,
        f"connector.hidden {connector.hidden}": connector.hidden not in (None, config.llm.width),
        f"connector.merge {connector.merge}": connector.merge != 1,
        f"connector.norm {connector.norm}": connector.norm != "none",
        f"connector.grid {connector.grid} on {tower.grid} patches a side": connector.grid != tower.grid,
        f"positions stored for {tower.position_grid} patches a side": tower.position_grid != tower.grid,
        "features under the encoder's final norm (feature_norm)": tower.feature_norm,
    }
    return next((text for text, differs in checks.items() if differs), None)


def rules(config: ModelConfig) -> list[Rule]:
    """The whole model.

    Raises:
        UserError: the model is not one that LLaVA's format can hold.
    """
    if (other := unlike(config)) is not None:
        raise UserError(f"LLaVA's format holds one CLIP tower and a plain two-layer connector, but this model has "
                        f"{other}; save it in our own format (--format spatialllm) instead")
    tower = config.vision[0]
    return [
        *(rule.nested(f"vision/{tower.name}", VISION) for rule in clip.rules(tower)),
        *linear("connector/linear_0", *(p + "1" for p in PROJECTOR), "model.mm_projector.0"),
        *linear("connector/linear_1", *(p + "2" for p in PROJECTOR), "model.mm_projector.2"),
        *(rule.nested("llm", ("",)) for rule in llama.rules(config.llm, BODY, HEAD)),
    ]


def config_from_hf(hf: Mapping[str, Any]) -> ModelConfig:
    """Our configuration of a transformers config.json (model_type llava)."""
    if (act := hf.get("projector_hidden_act", "gelu")) != "gelu":
        raise UserError(f"config.json: projector_hidden_act {act!r} is not supported; gelu is")
    tower = clip.config_from_hf(hf["vision_config"])
    layer = hf.get("vision_feature_layer", -2)
    if not isinstance(layer, int) or hf.get("vision_feature_select_strategy", "default") != "default":
        raise UserError("config.json: only one vision_feature_layer and the select strategy \"default\" are supported")
    tower = type(tower)(**{**vars(tower), "feature_layer": layer})
    return ModelConfig((tower,), ConnectorConfig(grid=tower.grid), llama.config_from_hf(
        {**_LLAMA_DEFAULTS, **hf["text_config"]}))


def config_to_hf(config: ModelConfig, image_token_id: int | None = None) -> dict[str, Any]:
    """config.json of a LlavaForConditionalGeneration. It has no place for the encoder's name and for how the model
    is computed (`dtype`, `remat`, `attention`, `unroll`, LoRA).

    Args:
        image_token_id: id whose places in a prompt the visual tokens take; default: the vocabulary's last.
    """
    tower, llm = config.vision[0], config.llm
    parts = {"vision_config": clip.config_to_hf(tower), "text_config": llama.config_to_hf(llm)}
    for part in parts.values():
        del part["architectures"]
    return {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], **parts,
            "projector_hidden_act": "gelu", "multimodal_projector_bias": True,
            "vision_feature_layer": tower.feature_layer, "vision_feature_select_strategy": "default",
            "image_token_index": llm.vocab_size - 1 if image_token_id is None else image_token_id,
            "image_seq_length": config.connector.num_tokens, "tie_word_embeddings": llm.tie_embeddings}
