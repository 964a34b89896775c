"""SpatialLLM in PyTorch: vision encoders of transformers, a connector, and a Llama that reads the visual tokens.

Load with AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True). It computes what the JAX model
does, parameter by parameter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel

from .configuration_spatialllm import SpatialLLMConfig

_MEAN_COLOUR = (122, 116, 104)  # of the borders that "pad" adds


def resample(features: Tensor, grid: int) -> Tensor:
    """Square feature maps [M, P, C] at another grid [M, grid * grid, C]: bilinear, antialiased when shrinking."""
    side = int(features.shape[1] ** 0.5)
    if side == grid:
        return features
    square = features.transpose(1, 2).unflatten(2, (side, side)).float()
    square = functional.interpolate(square, (grid, grid), mode="bilinear", antialias=True)
    return square.flatten(2).transpose(1, 2).to(features.dtype)


def standardized(features: Tensor) -> Tensor:
    """Every patch's features at mean 0 and variance 1."""
    x = features.float()
    x = x - x.mean(-1, keepdim=True)
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)).to(features.dtype)


def merged(features: Tensor, merge: int) -> Tensor:
    """merge x merge neighbours side by side in the channels: [M, P, C] -> [M, P / merge^2, merge^2 C]."""
    count, patches, channels = features.shape
    side = int(patches ** 0.5) // merge
    x = features.reshape(count, side, merge, side, merge, channels).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(count, side * side, merge * merge * channels)


def projector(inputs: int, hidden: int, outputs: int, layers: int) -> nn.ModuleDict:
    """The connector's MLP: linear_0, linear_1, ..., with GELU between them."""
    sizes = [inputs] + [hidden] * (layers - 1) + [outputs]
    return nn.ModuleDict({f"linear_{i}": nn.Linear(sizes[i], sizes[i + 1]) for i in range(layers)})


def project(layers: nn.ModuleDict, x: Tensor) -> Tensor:
    """Runs a `projector`."""
    for i, layer in enumerate(layers.values()):
        x = layer(functional.gelu(x) if i else x)
    return x


class SpatialLLMForCausalLM(PreTrainedModel, GenerationMixin):
    """The whole model.

    Prompts hold `config.image_token_id` `config.image_seq_length` times for every picture; in those places the
    visual tokens are read, picture by picture in the order of `pixel_values`.
    """

    config_class = SpatialLLMConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    _tied_weights_keys = {  # noqa: RUF012 (the name is transformers')
        "language_model.lm_head.weight": "language_model.model.embed_tokens.weight"}

    def __init__(self, config: SpatialLLMConfig) -> None:
        super().__init__(config)
        self.vision: Any = nn.ModuleDict({
            entry["name"]: AutoModel.from_config(AutoConfig.for_model(**entry["config"])) for entry in config.vision})
        c, width = config.connector, config.text_config.hidden_size
        cells = c["merge"] ** 2
        channels = {entry["name"]: cells * entry["config"]["hidden_size"] for entry in config.vision}
        hidden = c["hidden"] or width
        self.connector: Any = projector(sum(channels.values()), hidden, width, c["layers"]) \
            if c["mix"] == "concat" else nn.ModuleDict({
                name: projector(inputs, hidden, width, c["layers"]) for name, inputs in channels.items()})
        self.language_model: Any = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the language model's embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replaces the language model's head."""
        self.language_model.set_output_embeddings(value)

    def _normalized(self, pixel_values: Tensor | dict[str, Tensor], entry: dict[str, Any]) -> Tensor:
        """[M, 3, S, S] at one encoder's size and normalisation."""
        if isinstance(pixel_values, dict):
            return pixel_values[entry["name"]]
        x = pixel_values
        if x.shape[-1] == 3 and x.shape[1] != 3:
            x = x.permute(0, 3, 1, 2)
        x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        size = entry["image_size"]
        if x.shape[-2:] != (size, size):
            x = functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(entry[key], device=x.device).view(3, 1, 1) for key in ("mean", "std"))
        return (x - mean) / std

    def _features(self, pixel_values: Tensor | dict[str, Tensor], entry: dict[str, Any]) -> Tensor:
        """Patch features [M, P, C] of one encoder."""
        tower, kind = self.vision[entry["name"]], entry["config"]["model_type"]
        x = self._normalized(pixel_values, entry).to(tower.dtype)
        patches = (x.shape[-1] // entry["config"]["patch_size"]) ** 2
        extra: dict[str, Any] = {}
        if kind in ("clip_vision_model", "vit_mae"):
            extra["interpolate_pos_encoding"] = True
        if kind == "vit_mae":
            # It sorts its patches by this noise even when it masks none: a rising one keeps their order.
            extra["noise"] = torch.arange(patches, device=x.device, dtype=torch.float32).repeat(x.shape[0], 1)
        hidden = tower(x, output_hidden_states=True, **extra).hidden_states[entry["feature_layer"]]
        if entry["feature_norm"]:
            inner = getattr(tower, "vision_model", tower)
            hidden = (inner.post_layernorm if kind == "clip_vision_model" else inner.layernorm)(hidden)
        return hidden[:, -patches:]

    def visual_tokens(self, pixel_values: Tensor | dict[str, Tensor]) -> Tensor:
        """Visual tokens [M, N, D] of M pictures.

        Args:
            pixel_values: uint8 [M, 3, H, W] or [M, H, W, 3]; or floats in [0, 1] of that shape; or, per encoder's
                name, pictures [M, 3, S, S] that are at its size and normalisation already.
        """
        c = self.config.connector
        parts = [resample(self._features(pixel_values, entry), c["grid"]) for entry in self.config.vision]
        if c["norm"] == "layer":
            parts = [standardized(part) for part in parts]
        if c["mix"] == "concat":
            return project(self.connector, merged(torch.cat(parts, -1), c["merge"]))
        tokens = [project(layers, merged(part, c["merge"]))
                  for layers, part in zip(self.connector.values(), parts, strict=True)]
        if c["mix"] == "sum":
            return torch.stack(tokens).sum(0)
        return torch.stack(tokens, 2).flatten(1, 2)

    def embed(self, input_ids: Any, pixel_values: Tensor | dict[str, Tensor] | None = None) -> Tensor:
        """Embeddings [B, T, D] of a prompt with its pictures.

        Raises:
            ValueError: the image tokens in `input_ids` are not as many as the pictures' visual tokens.
        """
        images = input_ids == self.config.image_token_id
        embedded = self.get_input_embeddings()(input_ids.masked_fill(images, 0))
        visual = None if pixel_values is None else self.visual_tokens(pixel_values)
        wanted, given = int(images.sum()), 0 if visual is None else visual.shape[0] * visual.shape[1]
        if wanted != given:
            raise ValueError(f"input_ids hold {wanted} image tokens, the pictures have {given}; repeat token "
                             f"{self.config.image_token_id} {self.config.image_seq_length} times per picture")
        if visual is None:
            return embedded
        return embedded.masked_scatter(images[..., None], visual.to(embedded.dtype))

    def forward(self, input_ids: Tensor | None = None, pixel_values: Tensor | dict[str, Tensor] | None = None,
                attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Any = None,
                inputs_embeds: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """transformers' CausalLMOutputWithPast.

        Args:
            input_ids, attention_mask, labels: [B, T]; image tokens are never predicted.
            pixel_values: see `visual_tokens`; the rows' pictures one after the other.
        """
        if inputs_embeds is None:
            continues = past_key_values is not None and past_key_values.get_seq_length() > 0
            inputs_embeds = self.get_input_embeddings()(input_ids) if continues else self.embed(input_ids, pixel_values)
        if labels is not None and input_ids is not None:
            labels = labels.masked_fill(input_ids == self.config.image_token_id, -100)
        return self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, labels=labels, **kwargs)

    def pixels(self, pictures: list[Any]) -> Tensor:
        """uint8 [M, 3, S, S] of PIL pictures, squared as in training (`config.picture`)."""
        from PIL import Image

        rule = self.config.picture or {"size": self.config.vision[0]["image_size"], "resize": "pad"}
        size, squared = rule["size"], []
        for picture in pictures:
            picture = picture.convert("RGB")
            width, height = picture.size
            if rule["resize"] == "pad" and width != height:
                side = max(width, height)
                canvas = Image.new("RGB", (side, side), _MEAN_COLOUR)
                canvas.paste(picture, ((side - width) // 2, (side - height) // 2))
                picture = canvas
            elif rule["resize"] == "square":
                factor = size / min(width, height)
                width, height = max(round(width * factor), size), max(round(height * factor), size)
                left, top = (width - size) // 2, (height - size) // 2
                picture = picture.resize((width, height), Image.Resampling.BICUBIC).crop(
                    (left, top, left + size, top + size))
            picture = picture.resize((size, size), Image.Resampling.BICUBIC)
            squared.append(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(size, size, 3))
        return torch.stack(squared).permute(0, 3, 1, 2)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Pictures go in with the prompt only."""
        base: Any = super()
        inputs: dict[str, Any] = base.prepare_inputs_for_generation(*args, **kwargs)
        cache = inputs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            inputs["pixel_values"] = None
        return inputs
