"""Models by name, from test size to the paper's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import (
    CLIP_MEAN,
    CLIP_STD,
    ClipConfig,
    ConnectorConfig,
    LlamaConfig,
    ModelConfig,
    RopeScaling,
    TextTowerConfig,
    VisionConfig,
)


def clip_vision(image_size: int, patch_size: int, width: int, depth: int, num_heads: int,
                name: str = "clip") -> VisionConfig:
    """An OpenAI-CLIP-type image encoder."""
    return VisionConfig(name, "clip", image_size, patch_size, width, depth, num_heads, 4 * width,
                        activation="quick_gelu", norm_eps=1e-5, mean=CLIP_MEAN, std=CLIP_STD)


def dinov2_vision(image_size: int, width: int, depth: int, num_heads: int, patch_size: int = 14,
                  pretrain_grid: int = 37, name: str = "dinov2") -> VisionConfig:
    """A DINOv2 image encoder (stored positions: 37 x 37, from 518 px)."""
    return VisionConfig(name, "dinov2", image_size, patch_size, width, depth, num_heads, 4 * width,
                        pretrain_grid=pretrain_grid)


def mae_vision(image_size: int, patch_size: int, width: int, depth: int, num_heads: int,
               name: str = "mae") -> VisionConfig:
    """An MAE image encoder."""
    return VisionConfig(name, "mae", image_size, patch_size, width, depth, num_heads, 4 * width, norm_eps=1e-12)


CLIP_L_336 = clip_vision(336, 14, 1024, 24, 16)
CLIP_L_TEXT = TextTowerConfig()
DINOV2_S = dinov2_vision(518, 384, 12, 6)
DINOV2_L_336 = dinov2_vision(336, 1024, 24, 16)
MAE_L = mae_vision(224, 16, 1024, 24, 16)

VICUNA_7B = LlamaConfig(32000, 4096, 32, 32, 32, 128, 11008)
VICUNA_13B = LlamaConfig(32000, 5120, 40, 40, 40, 128, 13824)
LLAMA3_8B = LlamaConfig(128256, 4096, 32, 32, 8, 128, 14336, rope_theta=500000.0)
LLAMA31_8B = replace(LLAMA3_8B, rope_scaling=RopeScaling())
SMOLLM2_135M = LlamaConfig(49152, 576, 30, 9, 3, 64, 1536, rope_theta=100000.0, tie_embeddings=True)

TINY_CLIP = clip_vision(168, 28, 128, 4, 4)
# At 168 px a middle layer tells an object's sides apart better than the last but one, in half the time
# (`python -m launch.probe`).
TINY_DINOV2 = replace(DINOV2_S, image_size=168, feature_layer=6)
TINY_LLAMA = LlamaConfig(512, 128, 4, 4, 4, 32, 384, rope_theta=500000.0, tie_embeddings=True, embedding_init=0.1,
                         attention_init="match")
# Vicuna's stand-in: Llama 2's rotary base. What else sets Vicuna apart, its training, has no tiny counterpart.
TINY_VICUNA = replace(TINY_LLAMA, rope_theta=10000.0)
TINY_CONNECTOR = ConnectorConfig(grid=12, merge=2, hidden=256, norm="layer")

NANO_CLIP = clip_vision(16, 8, 16, 2, 2)
NANO_DINOV2 = dinov2_vision(16, 24, 2, 2, patch_size=4, pretrain_grid=3)
NANO_LLAMA = LlamaConfig(64, 32, 2, 4, 2, 8, 64, tie_embeddings=True)
NANO_CONNECTOR = ConnectorConfig(grid=4, merge=2)


def _whole(vision: tuple[VisionConfig, ...], llm: LlamaConfig, connector: ConnectorConfig | None = None,
           ) -> ModelConfig:
    return ModelConfig(vision, connector or ConnectorConfig(), llm)


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    # The paper's roadmap (Table 2): Vicuna-7B first, Llama-3-8B from row four on.
    "llava15": lambda: _whole((CLIP_L_336,), VICUNA_7B),
    "llava15_13b": lambda: _whole((CLIP_L_336,), VICUNA_13B),
    "clip_mae": lambda: _whole((CLIP_L_336, MAE_L), VICUNA_7B),
    "clip_dinov2": lambda: _whole((CLIP_L_336, DINOV2_L_336), VICUNA_7B),
    "clip_dinov2_13b": lambda: _whole((CLIP_L_336, DINOV2_L_336), VICUNA_13B),
    "spatialllm_8b": lambda: _whole((CLIP_L_336, DINOV2_L_336), LLAMA3_8B),
    "spatialllm_31_8b": lambda: _whole((CLIP_L_336, DINOV2_L_336), LLAMA31_8B),
    # Real small weights that need no model hub.
    "smollm2_135m": lambda: _whole((TINY_CLIP, TINY_DINOV2), SMOLLM2_135M, TINY_CONNECTOR),
    "smollm2_135m_dinov2": lambda: _whole((TINY_DINOV2,), SMOLLM2_135M, TINY_CONNECTOR),
    # A laptop's size: set llm.vocab_size to the tokenizer's.
    "tiny": lambda: _whole((TINY_CLIP, TINY_DINOV2), TINY_LLAMA, TINY_CONNECTOR),
    "tiny_vicuna": lambda: _whole((TINY_CLIP, TINY_DINOV2), TINY_VICUNA, TINY_CONNECTOR),
    "tiny_clip": lambda: _whole((TINY_CLIP,), TINY_VICUNA, TINY_CONNECTOR),
    "tiny_clip_mae": lambda: _whole((TINY_CLIP, mae_vision(168, 14, 128, 4, 4)), TINY_VICUNA, TINY_CONNECTOR),
    # As small as it gets, for tests.
    "nano": lambda: _whole((NANO_CLIP, NANO_DINOV2), NANO_LLAMA, NANO_CONNECTOR),
    "nano_clip": lambda: _whole((NANO_CLIP,), NANO_LLAMA, NANO_CONNECTOR),
    "nano_clip_mae": lambda: _whole((NANO_CLIP, mae_vision(16, 4, 24, 2, 2)), NANO_LLAMA, NANO_CONNECTOR),
}

CLIP_PRESETS: dict[str, Callable[[], ClipConfig]] = {
    "clip_l_336": lambda: ClipConfig(CLIP_L_336, CLIP_L_TEXT),
    "tiny": lambda: ClipConfig(TINY_CLIP, TextTowerConfig(512, 77, 128, 3, 4, 512), projection_dim=128),
    "nano": lambda: ClipConfig(NANO_CLIP, TextTowerConfig(64, 16, 16, 2, 2, 32), projection_dim=12),
}


def preset(name: str) -> ModelConfig:
    """The model called `name`.

    Raises:
        UserError: there is none; the message lists the names.
    """
    if name not in PRESETS:
        raise UserError(f"model preset {name!r} does not exist; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()


def clip_preset(name: str) -> ClipConfig:
    """The contrastive model called `name`; its vision tower is that of the model preset of the same size.

    Raises:
        UserError: there is none; the message lists the names.
    """
    if name not in CLIP_PRESETS:
        raise UserError(f"CLIP preset {name!r} does not exist; choose one of {', '.join(CLIP_PRESETS)}")
    return CLIP_PRESETS[name]()
