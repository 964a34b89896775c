"""Model folders: `config.json` and the parameters, as training writes them and inference reads them.

    folder/config.json     what the model is (`models.config`)
    folder/params/         Orbax: any sharding in, any sharding out; or
    folder/params.safetensors   the same parameters, flat, as conversion streams them
    folder/tokenizer.json  when the model reads text (`data.tokenizer`)
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from spatialllm_jax.errors import UserError
from spatialllm_jax.models import config as configs
from spatialllm_jax.models.linear import Params, fold_lora
from spatialllm_jax.models.pose import PoseConfig
from spatialllm_jax.models.tensor_file import TensorFiles, TensorWriter

CONFIG, PARAMS, TENSORS = "config.json", "params", "params.safetensors"
_CLASSES = {cls.__name__: cls for cls in (
    configs.ModelConfig, configs.ClipConfig, configs.VisionConfig, configs.TextTowerConfig,
    configs.ConnectorConfig, configs.LlamaConfig, configs.RopeScaling, configs.LoRAConfig, configs.Tiling,
    PoseConfig)}


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


def write_model(folder: str | Path, config: Any, shapes: Mapping[str, jax.ShapeDtypeStruct],
                leaves: Iterable[tuple[str, np.ndarray]]) -> None:
    """`save_model` of parameters that come one by one and are never together in memory.

    Args:
        shapes: path -> shape and type of what will come.
        leaves: (path, array); every process runs through them, the first one writes.
    """
    folder = Path(folder)
    if jax.process_index():
        for _ in leaves:
            pass
        return
    with replacing(folder) as partial:
        (partial / CONFIG).write_text(json.dumps(config_to_json(config), indent=1))
        with TensorWriter(partial / TENSORS, {path: (leaf.shape, leaf.dtype) for path, leaf in shapes.items()}) as file:
            for path, leaf in leaves:
                file.write(path, leaf)


def load_config(folder: str | Path) -> Any:
    """The config of a model folder. Raises UserError when there is none."""
    file = Path(folder) / CONFIG
    try:
        return config_from_json(json.loads(file.read_text()))
    except OSError:
        raise UserError(f"{folder} is not a model folder: it has no {CONFIG}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON: {error}") from None


def is_model(folder: Path) -> bool:
    """Whether `folder` looks like a model folder."""
    return (folder / CONFIG).is_file()


def check_replaceable(folder: Path, ours: Callable[[Path], bool] = is_model, kind: str = "a model folder") -> None:
    """Raises UserError where `replacing` would: `folder` exists and is something else. For before long work."""
    if folder.exists() and not ours(folder):
        raise UserError(f"{folder} exists and is not {kind}; choose another one")


@contextlib.contextmanager
def replacing(folder: str | Path, ours: Callable[[Path], bool] = is_model, kind: str = "a model folder",
              ) -> Iterator[Path]:
    """A folder to write into that takes the place of `folder` when all went well, and vanishes otherwise.

    Args:
        ours: whether an existing folder is of the kind that may be replaced.
        kind: what that is called.

    Raises:
        UserError: `folder` exists and is something else.
    """
    folder = Path(folder)
    check_replaceable(folder, ours, kind)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters on disk that can be read with any sharding.

    Attributes:
        where: the folder, for messages.
        config: what they are parameters of.
        shapes: path -> shape and stored type.
        restore: reads what it is asked for: path -> shape, type and sharding in, arrays out.
    """

    where: str
    config: Any
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    restore: Callable[[Mapping[str, jax.ShapeDtypeStruct]], dict[str, jax.Array]] = dataclasses.field(repr=False)

    def load(self, prefix: str = "", shardings: Mapping[str, jax.sharding.Sharding] | None = None,
             dtypes: Mapping[str, Any] | None = None, only: Collection[str] | None = None) -> dict[str, jax.Array]:
        """Flat parameters {path: array} under `prefix` ("" for all, "vision/dinov2", "llm").

        Args:
            shardings: path -> sharding; default: the first device.
            dtypes: path -> type to cast to; default: as stored.
            only: of these paths alone; default: all.

        Raises:
            UserError: there is nothing under `prefix`.
        """
        inside = {key: leaf for key, leaf in self.shapes.items() if under(key, prefix)}
        if not inside:
            tops = sorted({"/".join(key.split("/")[:2]) for key in self.shapes})
            raise UserError(f"{self.where} holds no parameters under {prefix!r}; it has {', '.join(tops)}")
        single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return self.restore({
            key: jax.ShapeDtypeStruct(leaf.shape, (dtypes or {}).get(key, leaf.dtype),
                                      sharding=(shardings or {}).get(key, single))
            for key, leaf in inside.items() if only is None or key in only})


def merged(weights: Weights) -> Weights:
    """The plain model's weights: LoRA updates kept in a folder are added into their kernels as these are read.

    Raises:
        UserError: there are updates where the folder's configuration has no LoRA.
    """
    adapted = {path.rpartition("/")[0] for path in weights.shapes if path.endswith("/lora_a")}
    if not adapted:
        return weights
    adapters = {part: lora for part in ("vision", "llm")
                if (lora := getattr(weights.config, f"{part}_lora", None)) is not None}
    for owner in sorted(adapted):
        if owner.partition("/")[0] not in adapters:
            raise UserError(f"{weights.where} holds LoRA updates of {owner}, but its {CONFIG} has no LoRA there; set "
                            "vision_lora or llm_lora in it as in training")

    def restore(targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        kernels = {path: target for path, target in targets.items()
                   if path.endswith("/kernel") and path.rpartition("/")[0] in adapted}
        found = weights.restore({path: target for path, target in targets.items() if path not in kernels})
        for path, target in kernels.items():
            found[path] = _merged_kernel(weights, path, target, adapters[path.partition("/")[0]])
        return found

    plain = {f"{part}_lora": None for part in adapters}
    shapes = {path: leaf for path, leaf in weights.shapes.items() if not path.endswith(("/lora_a", "/lora_b"))}
    return dataclasses.replace(weights, config=dataclasses.replace(weights.config, **plain), shapes=shapes,
                               restore=restore)


def _merged_kernel(weights: Weights, path: str, target: jax.ShapeDtypeStruct, lora: configs.LoRAConfig) -> jax.Array:
    owner = path.rpartition("/")[0]
    assert target.sharding is not None
    pair = {f"{owner}/{name}": jax.ShapeDtypeStruct(weights.shapes[f"{owner}/{name}"].shape, np.float32,
                                                    sharding=_whole(target.sharding)) for name in ("lora_a", "lora_b")}
    found = weights.restore({path: jax.ShapeDtypeStruct(target.shape, np.float32, sharding=target.sharding), **pair})
    layer = {key.rpartition("/")[2]: leaf for key, leaf in found.items()}
    # Added in float32 and rounded once.
    add = jax.jit(lambda tree: fold_lora(tree, lora)["kernel"].astype(target.dtype), out_shardings=target.sharding)
    kernel: jax.Array = add(layer)
    return kernel


def _whole(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """The same devices, with everything on each of them."""
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec()) \
        if isinstance(sharding, jax.sharding.NamedSharding) else sharding


def under(path: str, prefix: str) -> bool:
    """Whether a parameter lies at or below `prefix`; "" is above all."""
    return not prefix or path == prefix or path.startswith(prefix.rstrip("/") + "/")


def sliced(read: Callable[[str, tuple[slice, ...], Any], np.ndarray],
           ) -> Callable[[Mapping[str, jax.ShapeDtypeStruct]], dict[str, jax.Array]]:
    """A `Weights.restore` from a function that reads slices: (path, index, dtype) -> array.

    Each process reads what its own devices hold, every distinct slice once.
    """
    def restore(targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}
        for path, target in targets.items():
            assert target.sharding is not None
            found[path] = jax.make_array_from_callback(
                target.shape, target.sharding, _remembering(functools.partial(read, path), target.dtype))
        return found

    return restore


def _remembering(read: Callable[[tuple[slice, ...], Any], np.ndarray], dtype: Any,
                 ) -> Callable[[tuple[slice, ...] | None], np.ndarray]:
    """Replicas ask for the same slice one after the other; it is read once."""
    last: dict[tuple[tuple[Any, Any], ...], np.ndarray] = {}

    def one(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or ()
        bounds = tuple((part.start, part.stop) for part in index)
        if bounds not in last:
            last.clear()
            last[bounds] = read(index, dtype)
        return last[bounds]

    return one


def open_weights(folder: str | Path, prefix: str = "") -> Weights:
    """The parameters of a model folder, from Orbax (training writes it) or safetensors (conversion writes it).

    Args:
        prefix: not needed here; part of the signature that training calls (see `convert.folders.open_weights`).

    Raises:
        UserError: the folder is not a model folder.
    """
    folder = Path(folder)
    if (folder / TENSORS).exists():
        files = TensorFiles(folder / TENSORS)
        shapes = {name: jax.ShapeDtypeStruct(entry.shape, entry.dtype) for name, entry in files.entries.items()}
        return Weights(str(folder), load_config(folder), shapes,
                       sliced(lambda path, index, dtype: files[path][index].astype(dtype)))
    return Weights(str(folder), load_config(folder), stored_shapes(folder), functools.partial(_from_orbax, folder))


def stored_shapes(folder: str | Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Path -> shape and type of everything that training wrote into the folder, without reading it."""
    path = (Path(folder) / PARAMS).absolute()
    if not path.exists():
        raise UserError(f"{folder} is not a model folder: it has neither {PARAMS}/ nor {TENSORS}")
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata
    flat = traverse_util.flatten_dict(dict(metadata.tree), sep="/")
    return {key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for key, leaf in flat.items()}


def load_params(folder: str | Path, prefix: str = "",
                shardings: Mapping[str, jax.sharding.Sharding] | None = None) -> dict[str, jax.Array]:
    """Flat parameters of a model folder; see `Weights.load`."""
    return open_weights(folder).load(prefix, shardings)


def _from_orbax(folder: Path, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    tree = traverse_util.unflatten_dict(dict(targets), sep="/")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            (folder / PARAMS).absolute(),
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


