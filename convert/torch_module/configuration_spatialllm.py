"""Configuration of SpatialLLM for transformers (4.57 and 5)."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, LlamaConfig, PretrainedConfig


class SpatialLLMConfig(PretrainedConfig):
    """Vision encoders, connector and language model.

    Attributes:
        vision: one dict per encoder, in the order of their channels: "name"; "config", a transformers
            configuration as a dict; "image_size" that pictures are resized to; "feature_layer", the hidden state
            that is read; "feature_norm", whether the final norm is applied to it; "mean" and "std" of pixels.
        connector: "mix" ("concat", "interleave" or "sum"), "grid" that every feature map is resampled to, "merge"
            (merge x merge patches become one token), "layers", "hidden" (None: the language model's width),
            "norm" ("none" or "layer").
        text_config: the language model.
        image_token_id: id in `input_ids` whose places the visual tokens take.
        image_seq_length: how many visual tokens a picture has.
        picture: "size" and "resize" ("pad", "square" or "stretch") of the pictures it was trained on, or None.
    """

    model_type = "spatialllm"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 (the name is transformers')

    def __init__(self, vision: list[dict[str, Any]] | None = None, connector: dict[str, Any] | None = None,
                 text_config: dict[str, Any] | PretrainedConfig | None = None, image_token_id: int = -1,
                 image_seq_length: int = 0, picture: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.vision = vision or []
        self.connector = connector or {}
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**{"model_type": "llama", **text_config})
        self.text_config = text_config or LlamaConfig()
        self.image_token_id = image_token_id
        self.image_seq_length = image_seq_length
        self.picture = picture
        super().__init__(**kwargs)
