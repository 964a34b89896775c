"""A transformers or original-LLaVA folder (config.json and weights) as our configuration and parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from convert import clip, dinov2, hub, llama, llava, llava_next, llava_original, mae, spatialllm
from convert.engine import Config, family_of, plan_of, prefix_of
from convert.files import read_json
from convert.pickles import open_checkpoint
from convert.plan import Fill, State, filled
from spatialllm_jax.errors import UserError
from spatialllm_jax.models import store
from spatialllm_jax.models.config import ClipConfig, ConnectorConfig, LlamaConfig, ModelConfig, VisionConfig
from spatialllm_jax.models.linear import Params

# transformers' model_type -> our configuration.
MODEL_TYPES: dict[str, Callable[[Mapping[str, Any]], Config]] = {
    "clip": clip.contrastive_config_from_hf,
    "clip_vision_model": clip.config_from_hf,
    "dinov2": dinov2.config_from_hf,
    "dinov2_with_registers": dinov2.config_from_hf,
    "vit_mae": mae.config_from_hf,
    "llama": llama.config_from_hf,
    "llava": llava.config_from_hf,
    "llava_next": llava_next.config_from_hf,
    "spatialllm": spatialllm.config_from_hf,
}


def config_from_hf(hf: Mapping[str, Any], where: str = "config.json", tower: VisionConfig | None = None) -> Config:
    """Our configuration of a transformers config.json, or of the original LLaVA's.

    Args:
        where: the file's name in messages.
        tower: the vision tower of an original LLaVA that does not describe its own.

    Raises:
        UserError: the model type is not supported, or a field is missing.
    """
    kind, original = hf.get("model_type", ""), llava_original.recognised(hf)
    if not original and kind not in MODEL_TYPES:
        raise UserError(f"{where}: model_type {kind!r} is not supported; {', '.join(MODEL_TYPES)} are")
    try:
        return llava_original.config_from_hf(hf, tower) if original else MODEL_TYPES[kind](hf)
    except KeyError as error:
        raise UserError(f"{where}: the field {error} is missing") from None


def open_folder(folder: str | Path, name: str | None = None, vision_tower: str | Path | None = None,
                ) -> tuple[State, Config]:
    """(tensors, configuration) of a folder; nothing of the tensors is read yet.

    Args:
        name: of the encoder, when it is one.
        vision_tower: CLIP folder that completes an original LLaVA.

    Raises:
        UserError: see `open_checkpoint` and `config_from_hf`; or `name` is given for what is no single encoder, or
            `vision_tower` for another folder than an original LLaVA's.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one with config.json and *.safetensors")
    hf, where = read_json(folder / "config.json"), str(folder / "config.json")
    tower = None if vision_tower is None else Path(vision_tower)
    config = config_from_hf(hf, where, None if tower is None else llava_original.tower_config(tower))
    config = named(_normalised(config, folder), name, str(folder))
    state = open_checkpoint(folder)
    if llava_original.recognised(hf):
        return llava_original.Original(state, None if tower is None else open_checkpoint(tower)), config
    if tower is not None:
        raise UserError(f"--vision-tower completes folders of the original LLaVA, but {folder} is none; leave it out")
    return state, config


def _normalised(config: Config, folder: Path) -> Config:
    """`config` with the pixel mean and deviation that the folder's processor states, if it does."""
    file = folder / "preprocessor_config.json"
    found = read_json(file) if file.is_file() else {}
    # Our own format states them encoder by encoder.
    own = isinstance(config, ModelConfig) and len(config.vision) > 1
    if own or isinstance(config, LlamaConfig) or not {"image_mean", "image_std"} <= found.keys():
        return config
    mean, std = tuple(found["image_mean"]), tuple(found["image_std"])
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError(f"{file}: image_mean and image_std need three values each, the deviations above 0")
    if isinstance(config, VisionConfig):
        return replace(config, mean=mean, std=std)
    if isinstance(config, ClipConfig):
        return replace(config, vision=replace(config.vision, mean=mean, std=std))
    return config.replace(vision=tuple(replace(encoder, mean=mean, std=std) for encoder in config.vision))


def planned(state: State, config: Config | ConnectorConfig) -> list[Fill]:
    """How an opened checkpoint fills its parameters, below `prefix_of(config)`. Raises UserError: see `make_plan`."""
    if isinstance(state, llava_original.Original):
        return llava_original.plan(state, config)
    assert not isinstance(config, ConnectorConfig)
    return plan_of(state, family_of(config), config)


def named(config: Config, name: str | None, where: str) -> Config:
    """`config` with its encoder called `name`. Raises UserError when it is not a single encoder's."""
    if name is None:
        return config
    if isinstance(config, VisionConfig):
        return replace(config, name=name)
    if isinstance(config, ClipConfig):
        return replace(config, vision=replace(config.vision, name=name))
    raise UserError(f"a name ({name!r}) is for a single vision encoder, but {where} is a {family_of(config)} model")


def load(folder: str | Path, dtype: Any = np.float32, vision_tower: str | Path | None = None,
         ) -> tuple[Params, Config]:
    """(parameters, configuration) of a folder, in memory.

    A CLIPModel gives both towers (`ClipConfig`); a LLaVA gives the whole `ModelConfig` (an original one without
    its tower gives connector and language model alone); the others give one tower or decoder, to be put under
    params["vision"][name] or params["llm"].

    Args:
        dtype: type of the parameters; None = as stored.
        vision_tower: see `open_folder`.

    Raises:
        UserError: see `open_folder` and `planned`.
    """
    state, config = open_folder(folder, vision_tower=vision_tower)
    return filled(state, planned(state, config), dtype), config


def open_weights(folder: str | Path, prefix: str = "") -> store.Weights:
    """Weights of a model folder or straight of a transformers folder, read slice by slice: no converted copy.

    Args:
        prefix: which parameters are wanted; "vision/eye" calls the encoder of the folder "eye".

    Raises:
        UserError: see `store.open_weights`, `open_folder` and `plan.make_plan`.
    """
    folder = hub.local(folder)
    file = folder / "config.json"
    if not file.is_file() or "model_type" not in read_json(file):
        return store.open_weights(folder)
    state, config = open_folder(folder)
    top, _, name = prefix.partition("/")
    if top == "vision" and isinstance(config, VisionConfig | ClipConfig):
        config = named(config, name.partition("/")[0] or None, str(folder))
    base = prefix_of(config)
    fills = {base + fill.target: fill for fill in planned(state, config)}
    return store.Weights(
        str(folder), config,
        {path: jax.ShapeDtypeStruct(fill.shape, fill.dtype) for path, fill in fills.items()},
        store.sliced(lambda path, index, dtype: fills[path].read(state, index, dtype)))
