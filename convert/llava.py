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


def rules(config: ModelConfig) -> list[Rule]:
    """The whole model.

    Raises:
        UserError: the model is not one that LLaVA's format can hold.
    """
    if len(config.vision) != 1 or config.vision[0].kind != "clip" or config.connector.layers != 2 or (
            config.connector.mix != "concat"):
        raise UserError("LLaVA's format holds one CLIP tower and a two-layer connector; this model has "
                        f"{[v.name for v in config.vision]}, so save it in our own format instead")
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
