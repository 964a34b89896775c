"""DINOv2 (with and without registers) as transformers stores it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convert.rules import TABLE, TOKEN, Rule, activation_from_hf, activation_to_hf, linear, norm, patches
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import VisionConfig

# The mask token serves DINOv2's own pre-training and is never read here.
IGNORED = (r"(.*\.)?embeddings\.mask_token",)


def rules(config: VisionConfig) -> list[Rule]:
    """Sources start at the model's own root; transformers 4 names first, transformers 5's second."""
    layer, depth = "encoder.layer.{i}.", config.depth
    result = [
        Rule("class_token", ("embeddings.cls_token",), TOKEN),
        Rule("position_table", ("embeddings.position_embeddings",), TABLE),
        Rule("patch_embed/kernel", ("embeddings.patch_embeddings.projection.weight",), patches(config.patch_size)),
        Rule("patch_embed/bias", ("embeddings.patch_embeddings.projection.bias",)),
        *norm("final_norm", "layernorm"),
        Rule("blocks/scale1", (layer + "layer_scale1.lambda1",), depth=depth),
        Rule("blocks/scale2", (layer + "layer_scale2.lambda1",), depth=depth),
        *norm("blocks/norm1", layer + "norm1", depth=depth),
        *norm("blocks/norm2", layer + "norm2", depth=depth),
        *linear("blocks/attention/out", layer + "attention.output.dense", layer + "attention.o_proj", depth=depth),
    ]
    for ours in ("query", "key", "value"):
        result += linear(f"blocks/attention/{ours}", f"{layer}attention.attention.{ours}",
                         f"{layer}attention.{ours[0]}_proj", depth=depth)
    if config.swiglu:
        result += linear("blocks/mlp/gate", layer + "mlp.weights_in@0/2", layer + "mlp.gate_proj", depth=depth)
        result += linear("blocks/mlp/up", layer + "mlp.weights_in@1/2", layer + "mlp.up_proj", depth=depth)
        result += linear("blocks/mlp/down", layer + "mlp.weights_out", layer + "mlp.down_proj", depth=depth)
    else:
        result += linear("blocks/mlp/up", layer + "mlp.fc1", depth=depth)
        result += linear("blocks/mlp/down", layer + "mlp.fc2", depth=depth)
    if config.num_registers:
        result.append(Rule("registers", ("embeddings.register_tokens",), TABLE))
    return result


def _hidden(width: int, ratio: float, swiglu: bool) -> int:
    """transformers' hidden width; of SwiGLU two thirds of it, rounded up to a multiple of 8."""
    hidden = int(width * ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if swiglu else hidden


def config_from_hf(hf: Mapping[str, Any], name: str = "dinov2") -> VisionConfig:
    """Our configuration of a transformers config.json (model_type dinov2 or dinov2_with_registers)."""
    swiglu = bool(hf.get("use_swiglu_ffn", False))
    hidden = _hidden(hf["hidden_size"], hf.get("mlp_ratio", 4), swiglu)
    registers = hf["model_type"] == "dinov2_with_registers"
    return VisionConfig(
        name, "dinov2", hf["image_size"], hf["patch_size"], hf["hidden_size"], hf["num_hidden_layers"],
        hf["num_attention_heads"], hidden, swiglu=swiglu, activation=activation_from_hf(hf.get("hidden_act", "gelu")),
        num_registers=hf.get("num_register_tokens", 4) if registers else 0, antialias=registers,
        norm_eps=hf.get("layer_norm_eps", 1e-6), pretrain_grid=hf["image_size"] // hf["patch_size"])


def config_to_hf(config: VisionConfig) -> dict[str, Any]:
    """config.json of a Dinov2Model, or of a Dinov2WithRegistersModel.

    It has no place for `name`, `feature_layer`, `feature_norm`, `mean` and `std` (the last two go into
    preprocessor_config.json), and its image_size is that of the stored positions.

    Raises:
        UserError: transformers' classes cannot be set to this MLP or this interpolation of positions.
    """
    ratio = next((r for r in range(1, 17) if _hidden(config.width, r, config.swiglu) == config.mlp_dim), None)
    if ratio is None:
        raise UserError(f"vision encoder {config.name!r}: transformers' DINOv2 has an MLP of a whole multiple of the "
                        f"width, which mlp_dim {config.mlp_dim} at width {config.width} is not; it cannot be exported")
    if config.antialias != bool(config.num_registers):
        raise UserError(f"vision encoder {config.name!r}: transformers' DINOv2 antialiases positions with registers "
                        "and only then; set antialias accordingly, or it cannot be exported")
    name = "Dinov2WithRegisters" if config.num_registers else "Dinov2"
    registers = {"num_register_tokens": config.num_registers} if config.num_registers else {}
    return {"model_type": "dinov2_with_registers" if config.num_registers else "dinov2",
            "architectures": [f"{name}Model"], "image_size": config.position_grid * config.patch_size,
            "patch_size": config.patch_size, "hidden_size": config.width, "num_hidden_layers": config.depth,
            "num_attention_heads": config.num_heads, "mlp_ratio": ratio, "use_swiglu_ffn": config.swiglu,
            "hidden_act": activation_to_hf(config.activation), "layer_norm_eps": config.norm_eps, **registers}


def constants(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Tensors of zeros that transformers expects and that mean nothing here: name -> shape."""
    return {"embeddings.mask_token": (1, config.width)}
