"""Safetensors checkpoints on disk, read lazily."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from spatialllm_jax.errors import UserError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Safetensors(Mapping[str, np.ndarray]):
    """The tensors of all safetensors files of a folder (or of one file), read when asked for.

    Raises:
        UserError: no such folder, no safetensors in it (only pickles, say), a broken file, or a shard that the
            index names but the folder lacks.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.exists():
            raise UserError(f"{path} does not exist; give a folder (or file) of safetensors")
        if path.is_file() and path.suffix in _PICKLES:
            raise UserError(f"{path} is a pickle, which can run code when opened; convert it to safetensors first")
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        if not files:
            pickles = [f.name for f in path.iterdir() if f.suffix in _PICKLES]
            hint = (f"only pickles ({pickles[0]}), which can run code when opened; convert them to safetensors first"
                    if pickles else "no *.safetensors; give the folder that holds the weights")
            raise UserError(f"{path} holds {hint}")
        index = path / "model.safetensors.index.json"
        if index.is_file():
            shards = set(read_json(index)["weight_map"].values())
            lacking = sorted(shards - {f.name for f in files})
            if lacking:
                raise UserError(f"{path} lacks {', '.join(lacking)}, which {index.name} names; fetch it again")
        self._where: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for file in files:
            try:
                self._open[file] = safe_open(str(file), framework="numpy")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} is not a readable safetensors file ({error}); fetch it again") from None
            for name in self._open[file].keys():  # noqa: SIM118 (not a dict)
                if name in self._where:
                    raise UserError(f"tensor {name} is in both {self._where[name].name} and {file.name}; keep one")
                self._where[name] = file

    def __getitem__(self, name: str) -> np.ndarray:
        return self._open[self._where[name]].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; the folder needs it to know the model") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from None
