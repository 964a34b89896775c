"""Checkpoint folders on disk: their JSON files and their tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from convert.plan import State
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.tensor_file import TensorFiles

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def tensors(path: str | Path) -> State:
    """The tensors of a checkpoint folder (or one file), read when they are used.

    Raises:
        UserError: there is nothing to read, it is broken (see `TensorFiles`), or it is a pickle.
    """
    path = Path(path)
    if path.is_file() and path.suffix in _PICKLES:
        raise UserError(f"{path} is a pickle, which can run code when opened; convert it to safetensors first")
    if path.is_dir() and not any(path.glob("*.safetensors")):
        pickles = sorted(f.name for f in path.iterdir() if f.suffix in _PICKLES)
        if pickles:
            raise UserError(f"{path} holds only pickles ({pickles[0]}), which can run code when opened; convert them "
                            "to safetensors first")
    return TensorFiles(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file is missing or is not a JSON object.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; the folder needs it to know the model") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, a JSON object is expected")
    return found
