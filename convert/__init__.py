"""Weights from and to the PyTorch world: `load` and `save`, and the commands convert.from_hf, to_hf and verify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Imported when called: the commands below this package must not pay for each other.


def load(folder: str | Path, dtype: Any = None) -> tuple[dict[str, Any], Any]:
    """(parameters, configuration) of a transformers folder or an id of the hub; see `convert.folders.load`."""
    from convert import folders, hub

    return folders.load(hub.local(folder), dtype)


def save(folder: str | Path, config: Any, params: dict[str, Any], beside: str | Path | None = None) -> None:
    """Writes parameters as a folder that transformers reads; see `convert.to_hf.save`."""
    from convert import to_hf

    to_hf.save(folder, config, params, beside)
