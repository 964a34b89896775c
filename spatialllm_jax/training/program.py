"""The program of a stage: what its step computes, and on what, from shapes alone.

Training runs this program, `spatialllm_jax.planning` compiles it for machines that are not there: one code path, so
that a plan is a plan of what will run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from spatialllm_jax.data.batch import Batch
from spatialllm_jax.data.patch_words import MAX_WORDS
from spatialllm_jax.data.stream import SEQUENCES
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.clip_text import CLIP, init_clip
from spatialllm_jax.models.config import ClipConfig, ModelConfig
from spatialllm_jax.models.presets import clip_preset, preset
from spatialllm_jax.models.quantize import quantized
from spatialllm_jax.models.spatialllm import SpatialLLM, init_params
from spatialllm_jax.parallel.mesh import batch_sharding, replicated
from spatialllm_jax.parallel.rules import state_shardings
from spatialllm_jax.training import frozen as frozen_lib
from spatialllm_jax.training.config import StageConfig
from spatialllm_jax.training.initial import is_layer_kernel
from spatialllm_jax.training.objectives import Contrastive, NextToken, Objective, PatchWords
from spatialllm_jax.training.partition import Flat, flatten, split
from spatialllm_jax.training.step import TrainState, init_state, make_step

LOGIT_SCALE_RANGE = (0.0, float(np.log(100.0)))  # CLIP clamps the logit scale to at most ln 100


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a stage's objective runs on.

    Attributes:
        config: of the model, with the stage's LoRA.
        init: key -> nested random parameters.
        abstract: path -> shape and type of every parameter.
    """

    config: ModelConfig | ClipConfig
    init: Callable[[jax.Array], Any]
    abstract: Flat


def model_config(config: Mapping[str, Any], vocabulary: int | None = None) -> ModelConfig:
    """The run's model: preset, overrides, and a vocabulary that holds the tokenizer's.

    Args:
        vocabulary: number of the tokenizer's tokens; None keeps the preset's.
    """
    model = dict(config["model"])
    result = preset(model.pop("preset"))
    llm = result.llm
    fit = model.pop("fit_vocabulary", False)
    if vocabulary is not None and (vocabulary > llm.vocab_size or fit):
        llm = dataclasses.replace(llm, vocab_size=-(-vocabulary // 64) * 64)
    model.pop("text_tower", None)
    for key in model:
        if key not in ("dtype", "remat", "attention", "unroll"):
            raise UserError(f"config.model has no field {key!r}; it has preset, text_tower, fit_vocabulary, dtype, "
                            "remat, attention, unroll")
    return result.replace(llm=llm, **model)


def stage_parts(stage: StageConfig, config: Mapping[str, Any], model: ModelConfig, vocabulary: int | None = None,
                ) -> Parts:
    """The model of a stage: the whole, or CLIP's two towers where it is contrastive.

    Args:
        vocabulary: tokens of the tokenizer that a contrastive stage's texts go through; None is the text tower's own.

    Raises:
        UserError: a contrastive stage without CLIP's encoder, or whose tokenizer its text tower does not hold.
    """
    if stage.objective != "contrastive":
        whole = frozen_lib.adapted(model, stage.lora, stage.llm_lora)
        return Parts(whole, lambda key: init_params(whole, key), _abstract(lambda key: init_params(whole, key)))
    clip = clip_preset(config["model"]["text_tower"])
    vision = next((encoder for encoder in model.vision if encoder.kind == "clip"), None)
    if vision is None:
        raise UserError(f"stage {stage.name!r} is contrastive, but the model has no CLIP vision encoder")
    text = clip.text
    if vocabulary is not None and config["model"].get("fit_vocabulary"):
        text = dataclasses.replace(text, vocab_size=-(-max(vocabulary, 1) // 64) * 64)
    if vocabulary is not None and vocabulary > text.vocab_size:
        raise UserError(f"stage {stage.name!r} is contrastive: its tokenizer has {vocabulary} tokens and the "
                        f"text tower {text.vocab_size}; set stages.{stage.name}.tokenizer to the tower's own folder")
    clip = dataclasses.replace(clip, vision=vision, text=text, dtype=model.dtype, remat=model.remat,
                               attention=model.attention)
    clip = frozen_lib.adapted(clip, stage.lora, None)
    return Parts(clip, lambda key: init_clip(clip, key), _abstract(lambda key: init_clip(clip, key)))


def _abstract(init: Callable[[jax.Array], Any]) -> Flat:
    return flatten(jax.eval_shape(init, jax.random.key(0)))


def first_state(stage: StageConfig, parts: Parts, params: Flat, tx: optax.GradientTransformation,
                rng: jax.Array) -> TrainState:
    """The state a stage begins with. Pure; arrays go in and come out as they are.

    Args:
        params: path -> all parameters as the stage holds them (`training.frozen.held`, quantised).
    """
    chosen, _ = split(parts.abstract, stage.trainable)
    frozen = {path: leaf for path, leaf in params.items() if path not in chosen}
    if stage.stored_features:
        # The encoders' work is done: the step needs neither them nor their memory.
        frozen = {path: leaf for path, leaf in frozen.items() if not path.startswith("vision/")}
    return init_state({path: params[path] for path in chosen}, frozen, tx, rng)


def jitted_step(stage: StageConfig, config: ModelConfig | ClipConfig, tx: optax.GradientTransformation,
                shardings: TrainState, mesh: Mesh) -> Any:
    """`(state, batch) -> (state, metrics)`, jitted, the state donated.

    Args:
        config: of the stage's model (`Parts.config`).
        shardings: of the state. It leaves a step sharded as it came, whatever the partitioner would choose, so that
            no step recompiles.
    """
    running = dataclasses.replace(config, llm_quantize=stage.quantize) if isinstance(config, ModelConfig) else config
    return jax.jit(make_step(_objective(stage, running), tx, stage.accumulate, {"logit_scale": LOGIT_SCALE_RANGE}),
                   donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def _objective(stage: StageConfig, config: ModelConfig | ClipConfig) -> Objective:
    if isinstance(config, ClipConfig):
        return Contrastive(CLIP(config), stage.contrast_chunk)
    if stage.objective == "patch_words":
        return PatchWords(SpatialLLM(config), stage.loss_chunk)
    return NextToken(SpatialLLM(config), len(stage.sources), stage.loss_chunk, stage.patch_weight)


def abstract_state(stage: StageConfig, parts: Parts, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of `first_state`. Outside of `jax.set_mesh` where the mesh's devices cannot run."""
    params = dict(frozen_lib.held(parts.abstract, stage))
    for path in [path for path in params if stage.quantize != "none" and is_layer_kernel(path)]:
        owner, kernel = path.removesuffix("kernel"), params.pop(path)
        stored = jax.eval_shape(jax.vmap(lambda x: quantized(x, stage.quantize)), kernel)
        params.update({owner + name: leaf for name, leaf in stored.items()})
    state = jax.eval_shape(lambda held, key: first_state(stage, parts, held, tx, key), params, jax.random.key(0))
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                        state, state_shardings(state, params, mesh))


def abstract_batch(stage: StageConfig, model: ModelConfig, mesh: Mesh) -> Batch:
    """Shapes, types and shardings of the batches that `data.pipeline` makes for a stage, of its longest rows.

    Args:
        stage: with its number of rows (`rows.batch_size`), not of samples.
        model: of the run.
    """
    rows, sharding = stage.rows, batch_sharding(mesh)

    def struct(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((rows.batch_size, *shape), dtype, sharding=sharding)

    leaves = {name: struct(jnp.float32 if name == "loss_weights" else jnp.int32, rows.length)
              for name in (*SEQUENCES, "segment_ids")}
    leaves["image_mask"] = struct(jnp.bool_, rows.images)
    if stage.stored_features:
        leaves["features"] = struct(jnp.float16, rows.images, model.num_patches, model.feature_channels)
    else:
        leaves["images"] = struct(jnp.uint8, rows.images, rows.image_size, rows.image_size, 3)
    if stage.needs_patch_words:
        leaves["patch_targets"] = struct(jnp.int32, rows.images * model.connector.num_tokens, MAX_WORDS)
    return Batch(**leaves)
