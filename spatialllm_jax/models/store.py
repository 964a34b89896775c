"""Model folders: `config.json` and the parameters, as training writes them and inference reads them.

    folder/config.json     what the model is (`models.config`)
    folder/params/         Orbax: any sharding in, any sharding out
    folder/tokenizer.json  when the model reads text (`data.tokenizer`)
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import traverse_util

from spatialllm_jax.errors import UserError
from spatialllm_jax.models import config as configs
from spatialllm_jax.models.linear import Params

CONFIG, PARAMS = "config.json", "params"
_CLASSES = {cls.__name__: cls for cls in (
    configs.ModelConfig, configs.ClipConfig, configs.VisionConfig, configs.TextTowerConfig,
    configs.ConnectorConfig, configs.LlamaConfig, configs.RopeScaling, configs.LoRAConfig, configs.Tiling)}


def config_to_json(config: Any) -> Any:
    """A JSON-able tree of a config dataclass; each node names its class."""
    if dataclasses.is_dataclass(config):
        fields = {f.name: config_to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"class": type(config).__name__, **fields}
    if isinstance(config, tuple):
        return [config_to_json(item) for item in config]
    return config


def config_from_json(tree: Any) -> Any:
    """The inverse of `config_to_json`. Raises UserError on unknown classes or fields."""
    if isinstance(tree, dict):
        fields = {key: config_from_json(value) for key, value in tree.items() if key != "class"}
        cls = _CLASSES.get(tree.get("class", ""))
        if cls is None:
            raise UserError(f"config.json names an unknown class {tree.get('class')!r}")
        try:
            return cls(**fields)
        except TypeError as error:
            raise UserError(f"config.json does not fit {cls.__name__}: {error}") from None
    return tuple(config_from_json(item) for item in tree) if isinstance(tree, list) else tree


def save_model(folder: str | Path, config: Any, params: Params) -> None:
    """Writes a model folder; it appears only when complete, replacing an older one.

    Args:
        params: nested dict; partial trees (a single tower) are fine.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    if jax.process_index() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / CONFIG).write_text(json.dumps(config_to_json(config), indent=1))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((partial / PARAMS).absolute(), params)
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)


def load_config(folder: str | Path) -> Any:
    """The config of a model folder. Raises UserError when there is none."""
    file = Path(folder) / CONFIG
    try:
        return config_from_json(json.loads(file.read_text()))
    except OSError:
        raise UserError(f"{folder} is not a model folder: it has no {CONFIG}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON: {error}") from None


def stored_shapes(folder: str | Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Path -> shape and type of everything in the folder, without reading it."""
    path = (Path(folder) / PARAMS).absolute()
    if not path.exists():
        raise UserError(f"{folder} is not a model folder: it has no {PARAMS}/")
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata
    flat = traverse_util.flatten_dict(dict(metadata.tree), sep="/")
    return {key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for key, leaf in flat.items()}


def load_params(folder: str | Path, prefix: str = "",
                shardings: Mapping[str, jax.sharding.Sharding] | None = None) -> dict[str, jax.Array]:
    """Flat parameters {path: array} under `prefix` ("" for all, "vision/dinov2", "llm").

    Args:
        shardings: path -> sharding to restore with; default: the first device.

    Raises:
        UserError: when the folder holds nothing under `prefix`.
    """
    stored = stored_shapes(folder)
    inside = {key: leaf for key, leaf in stored.items() if not prefix or key == prefix
              or key.startswith(prefix.rstrip("/") + "/")}
    if not inside:
        tops = sorted({"/".join(key.split("/")[:2]) for key in stored})
        raise UserError(f"{folder} holds no parameters under {prefix!r}; it has {', '.join(tops)}")
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def target(key: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=(shardings or {}).get(key, single))

    tree = traverse_util.unflatten_dict({key: target(key, leaf) for key, leaf in inside.items()}, sep="/")
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer:
        restored = checkpointer.restore(
            (Path(folder) / PARAMS).absolute(),
            args=ocp.args.PyTreeRestore(item=tree, partial_restore=True,
                                        restore_args=ocp.checkpoint_utils.construct_restore_args(tree)))
    return traverse_util.flatten_dict(restored, sep="/")


def check_shapes(folder: str | Path, loaded: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises UserError that names the first parameter missing, unknown or of another shape."""
    for key, leaf in loaded.items():
        if key not in expected:
            raise UserError(f"{folder} has a parameter {key} that the model does not; check the model preset")
        if tuple(leaf.shape) != tuple(expected[key].shape):
            raise UserError(f"{folder}: {key} has shape {tuple(leaf.shape)}, the model wants "
                            f"{tuple(expected[key].shape)}; check the model preset and the tokenizer")
    missing = sorted(set(expected) - set(loaded))
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of the model's parameters, first {missing[0]}")


