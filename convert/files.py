"""Checkpoint folders on disk: their JSON files and their tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from convert.plan import State
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.tensor_file import TensorFiles

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def tensors(folder: Path) -> State:
    """The tensors of a folder's safetensors, read when they are used.

    Raises:
        UserError: there are none, or only pickles, or they are broken (see `TensorFiles`).
    """
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(f.name for f in folder.iterdir() if f.suffix in _PICKLES)
        if pickles:
            raise UserError(f"{folder} holds only pickles ({pickles[0]}), which can run code when opened; convert them "
                            "to safetensors first")
    return TensorFiles(folder)


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
