"""How many floating-point operations a training step needs, in closed form.

A multiplication and an addition count as two. What counts is what the mathematics asks for: causal attention by the
keys a token really sees, the head at supervised positions, frozen encoders forward only, frozen weights without
their own gradients. Recomputation (remat), padding and the optimizer do not count. MFU is this number per second
over the devices' peak.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

from spatialllm_jax.models.config import LlamaConfig, ModelConfig, VisionConfig

# Dense bfloat16 peak per device in FLOP/s, by the beginning of `jax.Device.device_kind` (vendors' data sheets).
PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def peak(device_kind: str) -> float | None:
    """Peak FLOP/s of a device, or None when it is not in the table (CPUs)."""
    return next((value for kind, value in PEAKS.items() if device_kind.startswith(kind)), None)


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """Operations of a step per unit of what a batch holds; see `count`.

    Attributes:
        position: per position that is not padding.
        pair: per (query, key) pair that attention looks at, over all layers and heads.
        supervised: per position with a loss (the head).
        image: per image (encoders and connector).
    """

    position: float
    pair: float
    supervised: float
    image: float

    def count(self, counts: Mapping[str, float]) -> float:
        """Operations of steps with these counts: positions, pairs, supervised, images."""
        return (self.position * counts["positions"] + self.pair * counts["pairs"]
                + self.supervised * counts["supervised"] + self.image * counts["images"])


def step_flops(config: ModelConfig, *, trains_llm: bool, trains_connector: bool = True, trains_vision: bool = False,
               encodes: bool = True, adapts_llm: bool = False) -> StepFlops:
    """Of a next-token step, forward and backward.

    A matrix that trains costs three times its forward product (forward, gradient of its input, gradient of itself),
    a frozen one below something that trains twice, a frozen one at the bottom once.

    Args:
        trains_llm, trains_connector, trains_vision: what has a gradient; LoRA's own matrices are not counted.
        adapts_llm: the language model has LoRA: gradients pass through its frozen matrices.
        encodes: whether the vision encoders run (not with stored features).
    """
    below = trains_connector or trains_vision or adapts_llm
    llm = 3 if trains_llm else 2 if below else 1
    attention = 3 if trains_llm or below else 1
    vision = 2 if trains_vision else 1
    encoders = sum(vision_flops(encoder) for encoder in config.vision) if encodes else 0.0
    connector = connector_flops(config) * (3 if trains_connector else 2 if trains_vision else 1)
    return StepFlops(
        position=2.0 * linear_parameters(config.llm) * llm,
        pair=4.0 * config.llm.num_heads * config.llm.head_dim * config.llm.depth * attention,
        supervised=2.0 * config.llm.width * config.llm.vocab_size * llm,
        image=encoders * vision + connector)


def linear_parameters(llm: LlamaConfig) -> int:
    """Weights of the decoder layers' matrices."""
    heads = llm.num_heads * llm.head_dim
    keys = 2 * llm.num_kv_heads * llm.head_dim
    return llm.depth * (llm.width * (heads + keys) + heads * llm.width + 3 * llm.width * llm.mlp_dim)


def vision_flops(encoder: VisionConfig) -> float:
    """Forward operations of one image through the blocks that reach the feature layer."""
    tokens = encoder.grid ** 2 + encoder.num_prefix
    matrices = 4 * encoder.width ** 2 + (3 if encoder.swiglu else 2) * encoder.width * encoder.mlp_dim
    block = 2.0 * matrices * tokens + 4.0 * encoder.width * tokens ** 2
    return block * encoder.feature_blocks + 2.0 * 3 * encoder.patch_size ** 2 * encoder.width * encoder.grid ** 2


def connector_flops(config: ModelConfig) -> float:
    """Forward operations of the connector per image."""
    connector, width = config.connector, config.llm.width
    hidden = connector.hidden or width
    channels = [encoder.width for encoder in config.vision]
    inputs = [sum(channels)] if connector.mix == "concat" else channels
    tokens = (connector.grid // connector.merge) ** 2
    total = 0.0
    for channel in inputs:
        sizes = [channel * connector.merge ** 2, *[hidden] * (connector.layers - 1), width]
        total += 2.0 * tokens * sum(a * b for a, b in itertools.pairwise(sizes))
    return total
