"""Parameters as PyTorch tensors, one at a time, and the safetensors folder they are written to."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from convert import dinov2, spatialllm
from convert.engine import abstract, rules_of
from convert.rules import Rule
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import LoRAConfig
from spatialllm_jax.models.linear import fold_lora
from spatialllm_jax.models.tensor_file import INDEX, TensorWriter

LORA = ("lora_a", "lora_b")
# In the files' headers, by which an export is told from other folders.
EXPORTED_BY = {"exported_by": "spatialllm-jax"}

_CONSTANTS: dict[str, Callable[[Any], dict[str, tuple[int, ...]]]] = {
    "dinov2": dinov2.constants, "spatialllm": spatialllm.constants}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint; `read` makes it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class Stored:
    """Parameters that lie somewhere: shapes by path, and how one is read."""

    shapes: Mapping[str, Any]
    read: Callable[[str], np.ndarray]

    def below(self, prefix: str) -> Stored:
        """The parameters under `prefix`, by their paths from there."""
        start = f"{prefix}/" if prefix else ""
        return Stored({path.removeprefix(start): leaf for path, leaf in self.shapes.items() if path.startswith(start)},
                      lambda path: self.read(start + path))


def without_lora(stored: Stored, lora: Mapping[str, LoRAConfig | None], merge: bool) -> Stored:
    """The plain model's parameters, with every LoRA pair added into its kernel as it is read, or dropped.

    Args:
        lora: path's beginning ("vision", "llm", "" for any) -> its LoRA.
        merge: add the updates; else leave them out.

    Raises:
        UserError: a pair lies where the configuration has no LoRA.
    """
    plain = {path: leaf for path, leaf in stored.shapes.items() if path.rpartition("/")[2] not in LORA}

    def read(path: str) -> np.ndarray:
        owner, _, kind = path.rpartition("/")
        kernel = stored.read(path)
        if not merge or kind != "kernel" or f"{owner}/lora_a" not in stored.shapes:
            return kernel
        pair = {name: stored.read(f"{owner}/{name}") for name in LORA}
        return np.asarray(fold_lora({"kernel": kernel, **pair}, lora_of(path, lora))["kernel"])

    for path in stored.shapes:
        if path not in plain:
            lora_of(path, lora)
    return Stored(plain, read)


def lora_of(path: str, lora: Mapping[str, LoRAConfig | None]) -> LoRAConfig:
    """The LoRA of the part that `path` lies in.

    Raises:
        UserError: it has none.
    """
    for start, config in lora.items():
        if path.startswith(start) and config is not None:
            return config
    raise UserError(f"parameter {path} is a LoRA update, but config.json has no LoRA there; set vision_lora or "
                    "llm_lora in it as in training")


def tensors(stored: Stored, family: str, config: Any, dtype: np.dtype | None = None) -> list[Tensor]:
    """The model under the names that transformers writes to files; nothing is read yet.

    Args:
        dtype: type to write; None leaves every parameter its own.

    Raises:
        UserError: the parameters are not those of `config`.
    """
    rules, _ = rules_of(family, config)
    expected = {"/".join(path): leaf.shape for path, leaf in flatten_dict(abstract(config)).items()}
    wrong = [path for path in sorted(expected.keys() | stored.shapes.keys())
             if path not in stored.shapes or tuple(stored.shapes[path].shape) != expected.get(path)]
    if wrong:
        has = tuple(stored.shapes[wrong[0]].shape) if wrong[0] in stored.shapes else "nothing"
        raise UserError(f"params: {wrong[0]} is {has}, but config.json asks for {expected.get(wrong[0], 'nothing')} "
                        f"({len(wrong)} parameters differ); export one part with --part, or mend config.json")
    unmapped = sorted(set(expected) ^ {rule.target for rule in rules})
    if unmapped:
        raise UserError(f"parameter {unmapped[0]} has no place in transformers' {family} format")
    # Layers are slices of one stacked parameter, which is therefore read once for all of them.
    recent = functools.lru_cache(maxsize=2)(stored.read)
    pieces: dict[str, list[tuple[int, Rule, int | None]]] = {}
    for rule in rules:
        for i in range(rule.depth) if rule.depth is not None else [None]:
            name, _, part = rule.sources[0].format(i=i).partition("@")
            pieces.setdefault(name, []).append((int(part.partition("/")[0] or 0), rule, i))
    result = [_tensor(name, [(rule, i) for _, rule, i in sorted(found, key=lambda piece: piece[0])], stored, recent,
                      dtype) for name, found in pieces.items()]
    for name, shape in _CONSTANTS.get(family, lambda config: {})(config).items():
        result.append(_zeros(name, shape, dtype or result[0].dtype))
    return result


def to_torch(params: Mapping[str, Any], family: str, config: Any) -> dict[str, np.ndarray]:
    """The PyTorch state of nested parameters, in memory. Raises UserError: see `tensors`."""
    flat = {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(dict(params)).items()}
    written = tensors(Stored(flat, flat.__getitem__), family, config)
    # Contiguous, as safetensors' own writer takes whatever lies in memory.
    return {tensor.name: np.asarray(tensor.read(), order="C") for tensor in written}


def _tensor(name: str, pieces: list[tuple[Rule, int | None]], stored: Stored, read: Callable[[str], np.ndarray],
            dtype: np.dtype | None) -> Tensor:
    leaf = stored.shapes[pieces[0][0].target]
    target = np.dtype(dtype or leaf.dtype)

    def layout(rule: Rule, i: int | None, value: np.ndarray) -> np.ndarray:
        return rule.layout.to_torch(value if i is None else value[i])

    def make() -> np.ndarray:
        parts = [layout(rule, i, read(rule.target)).astype(target) for rule, i in pieces]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def shape(rule: Rule, i: int | None) -> tuple[int, ...]:
        # A zero seen from everywhere: the layout's shape without its memory.
        return layout(rule, i, np.broadcast_to(np.zeros((), np.int8), stored.shapes[rule.target].shape)).shape

    shapes = [shape(rule, i) for rule, i in pieces]
    whole = (sum(s[0] for s in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]
    return Tensor(name, whole, target, make)


def _zeros(name: str, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    return Tensor(name, shape, np.dtype(dtype), lambda: np.zeros(shape, dtype))


def padded(tensor: Tensor, rows: int) -> Tensor:
    """A vocabulary's matrix with `rows` rows, the new ones the mean of the old: such a row's logit is the mean of
    all logits, so that it is never the largest."""
    count = tensor.shape[0]

    def make() -> np.ndarray:
        old = tensor.read()
        mean = old.astype(np.float32).mean(axis=0, keepdims=True).astype(tensor.dtype)
        return np.concatenate([old, np.broadcast_to(mean, (rows - count, *old.shape[1:]))])

    return replace(tensor, shape=(rows, *tensor.shape[1:]), read=make)


def dtype_name(written: Iterable[Tensor]) -> str:
    """The type that config.json names: the widest of the tensors'."""
    return str(np.dtype(jnp.result_type(*{tensor.dtype for tensor in written})).name)


def write_shards(folder: Path, written: Iterable[Tensor], limit: int, file: str = "model") -> list[str]:
    """Writes safetensors files of up to `limit` bytes as transformers does, one tensor in memory at a time.

    One file is `file`.safetensors; several are numbered and listed in an index.

    Returns:
        the files' names.
    """
    shards: list[list[Tensor]] = [[]]
    for tensor in written:
        if shards[-1] and sum(t.size for t in shards[-1]) + tensor.size > limit:
            shards.append([])
        shards[-1].append(tensor)
    count = len(shards)
    names = [f"{file}.safetensors"] if count == 1 else [
        f"{file}-{k + 1:05d}-of-{count:05d}.safetensors" for k in range(count)]
    for name, shard in zip(names, shards, strict=True):
        with TensorWriter(folder / name, {tensor.name: (tensor.shape, tensor.dtype) for tensor in shard},
                          {"format": "pt", **EXPORTED_BY}) as writer:
            for tensor in shard:
                writer.write(tensor.name, tensor.read())
    if count > 1:
        every = [tensor for shard in shards for tensor in shard]
        (folder / INDEX).write_text(json.dumps({
            "metadata": {"total_parameters": sum(int(np.prod(t.shape, dtype=np.int64)) for t in every),
                         "total_size": sum(tensor.size for tensor in every)},
            "weight_map": {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
        }, indent=2) + "\n")
    return names
