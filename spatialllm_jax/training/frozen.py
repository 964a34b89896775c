"""What a stage freezes: held in fewer bits while it runs, exact again in the model it leaves.

A stage reads its frozen parameters rounded (`StageConfig.frozen_dtype`, `StageConfig.quantize`), and reads them once
more, exact and one by one, when it writes its model: what a later stage trains, and what LoRA is merged into, never
was rounded. Where they are read from is `training.initial`'s order: earlier stages' folders, `config.weights`, the
same random numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from spatialllm_jax.errors import UserError
from spatialllm_jax.models import store
from spatialllm_jax.models.config import ClipConfig, LoRAConfig, ModelConfig
from spatialllm_jax.models.linear import fold_lora
from spatialllm_jax.parallel import hosts
from spatialllm_jax.training.config import StageConfig
from spatialllm_jax.training.initial import is_layer_kernel
from spatialllm_jax.training.partition import Flat, split

Config = TypeVar("Config", bound=ModelConfig | ClipConfig)
# Paths -> their exact values.
ReadExact = Callable[[Collection[str]], dict[str, jax.Array]]


def adapted(config: Config, lora: LoRAConfig | None, llm_lora: LoRAConfig | None) -> Config:
    """The model with this LoRA on its vision encoders and its language model, if it has one; or without."""
    changes = {"vision_lora": lora, **({"llm_lora": llm_lora} if isinstance(config, ModelConfig) else {})}
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def held(abstract: Flat, stage: StageConfig) -> Flat:
    """Path -> shape and type that `stage` reads its parameters in; quantising comes on top.

    What `frozen_dtype` is for are kernels and the language model's embedding, which are cast to the compute type
    wherever they are used: under bfloat16 compute, holding them so changes nothing. The rest is hardly any memory, and
    norms, positions and CLIP's temperature are computed with in float32.

    Args:
        abstract: of the model with the stage's LoRA, in float32.

    Raises:
        UserError: a kernel is to train and to be quantised, or no LoRA update trains.
    """
    trainable, frozen = split(abstract, stage.trainable)
    if stage.quantize != "none" and (training := [path for path in trainable if is_layer_kernel(path)]):
        raise UserError(f"stage {stage.name!r} quantises {training[0]}, which it trains; set quantize to none, or "
                        'train LoRA instead (llm_lora, trainable="connector|llm/.*lora_")')
    if any("lora_" in path for path in abstract) and not any("lora_" in path for path in trainable):
        raise UserError(f"stage {stage.name!r} has LoRA updates, but trainable={stage.trainable!r} matches none of "
                        'them; add "|.*lora_" to it')
    dtype = jnp.dtype(stage.frozen_dtype)

    def one(path: str, leaf: Any) -> Any:
        cast_at_use = path.endswith("/kernel") or path == "llm/embedding"
        return jax.ShapeDtypeStruct(leaf.shape, dtype) if path in frozen and cast_at_use else leaf

    return {path: one(path, leaf) for path, leaf in abstract.items()}


def rounded(abstract: Flat, stage: StageConfig) -> list[str]:
    """Paths of the parameters that `stage` does not hold exactly."""
    return [path for path, leaf in held(abstract, stage).items()
            if leaf.dtype != abstract[path].dtype or (stage.quantize != "none" and is_layer_kernel(path))]


def write_exact(folder: Path, config: ModelConfig | ClipConfig, params: Mapping[str, jax.Array], abstract: Flat,
                batches: Sequence[Collection[str]], exact: ReadExact, keep_lora: bool) -> None:
    """Writes the model folder of a stage that held some parameters rounded, one parameter at a time.

    Args:
        config: with the stage's LoRA.
        params: flat, as the stage leaves them.
        abstract: path -> shape and type of all parameters, in float32.
        batches: the rounded paths, in the portions that `exact` reads together.
        keep_lora: leave the updates beside their kernels instead of adding them.
    """
    dropped = set() if keep_lora else {path for path in abstract if "lora_" in path}

    def leaf(path: str, value: jax.Array) -> tuple[str, np.ndarray]:
        owner = path.removesuffix("kernel")
        if not keep_lora and path.endswith("/kernel") and f"{owner}lora_a" in abstract:
            lora = config.vision_lora if path.startswith("vision/") else getattr(config, "llm_lora", None)
            assert isinstance(lora, LoRAConfig)
            value = fold_lora({"kernel": value, **{name: params[owner + name] for name in ("lora_a", "lora_b")}},
                              lora)["kernel"]
        return path, hosts.whole(value)

    def leaves() -> Iterator[tuple[str, np.ndarray]]:
        reread = {path for batch in batches for path in batch}
        for path in abstract:
            if path not in reread and path not in dropped:
                yield leaf(path, params[path])
        for batch in batches:
            for path, value in exact([path for path in batch if path not in dropped]).items():
                yield leaf(path, value)

    shapes = {path: leaf for path, leaf in abstract.items() if path not in dropped}
    store.write_model(folder, config if keep_lora else adapted(config, None, None), shapes, leaves())
