"""PyTorch's own files (.bin, .pt): pickles, opened by torch's restricted reader, which runs nothing they hold."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.files import read_json, tensors
from convert.plan import State
from spatialllm_jax.errors import UserError

SUFFIXES = (".bin", ".pt", ".pth")
INDEX = "pytorch_model.bin.index.json"
WHOLE = "pytorch_model.bin"


class Pickles(Mapping[str, np.ndarray]):
    """The tensors of a PyTorch file, or of a folder's `pytorch_model.bin` or its shards.

    Files are mapped into memory where their format allows (torch >= 1.6); then a tensor is read when asked for.

    Raises:
        UserError: torch is not installed, a shard is missing, a file is broken, would run code, or holds
            something else than a dictionary of tensors.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self._tensors: dict[str, Any] = {}
        where: dict[str, str] = {}
        for file in [path] if path.is_file() else _files(path):
            for name, tensor in _opened(file).items():
                if name in where:
                    raise UserError(f"tensor {name} is in both {where[name]} and {file.name}; keep one")
                self._tensors[name], where[name] = tensor, file.name

    def __getitem__(self, name: str) -> np.ndarray:
        import torch

        tensor = self._tensors[name].detach()
        if tensor.dtype == torch.bfloat16:
            # numpy has no such type of its own: the bits are passed on as they are.
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def open_checkpoint(folder: Path) -> State:
    """The tensors of a folder: its safetensors, or where there are none its `pytorch_model*.bin`.

    Raises:
        UserError: see `files.tensors` and `Pickles`.
    """
    if any(folder.glob("*.safetensors")) or not ((folder / INDEX).is_file() or (folder / WHOLE).is_file()):
        return tensors(folder)
    return Pickles(folder)


def _files(folder: Path) -> list[Path]:
    """Only what belongs to the model: trainers leave training_args.bin and the like beside it."""
    index = folder / INDEX
    if not index.is_file():
        return [folder / WHOLE]
    names = sorted(set(read_json(index)["weight_map"].values()))
    lacking = [name for name in names if not (folder / name).is_file()]
    if lacking:
        raise UserError(f"{folder} lacks {', '.join(lacking)}, which {INDEX} names; fetch it again")
    return [folder / name for name in names]


def _opened(file: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise UserError(f"{file} is a PyTorch file and torch is not installed; "
                        "pip install 'spatialllm-jax[torch]', or give safetensors") from None
    try:
        # Mapping needs the zip format; older files are read whole.
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        if code := re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error)):
            raise UserError(f"{file} is refused, because opening it would run code ({code[1]}); weights need none: "
                            "get them as safetensors") from None
        raise UserError(f"{file} is not a readable PyTorch file; fetch it again") from None
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise UserError(f"{file} is not a plain dictionary of tensors; save the model's state_dict() alone")
    return tensors
