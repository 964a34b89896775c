"""`--config=FILE.py[:ARG] --config.a.b=value`: a readable config file, with any value overridable."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from spatialllm_jax.errors import UserError


def load(spec: str, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    """The config that `spec` names with overrides applied.

    Args:
        spec: path of a file with `get_config(arg)`, with ":ARG" when it takes one.
        overrides: "--config.key.key=value"; `--config.size` reaches `get_config` first, as "ARG,SIZE",
            since a size changes many values at once.

    Raises:
        UserError: for a missing file, an unknown argument, an unknown field or a value of another type.
    """
    path, _, arg = spec.partition(":")
    pairs = [_parse(override) for override in overrides]
    sizes = [value for key, value in pairs if key == "size"]
    if sizes:
        arg = f"{arg},{sizes[-1]}"
    config = _get_config(Path(path), arg)
    for key, value in pairs:
        if key != "size":
            _override(config, key, value)
    return config


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(plain arguments, `--config.*` overrides); overrides may be written with "=" or a space."""
    plain, overrides, index = [], [], 0
    while index < len(argv):
        item = argv[index]
        if not item.startswith("--config."):
            plain.append(item)
        elif "=" in item:
            overrides.append(item)
        elif index + 1 < len(argv):
            index += 1
            overrides.append(f"{item}={argv[index]}")
        else:
            raise UserError(f"{item} needs a value; write {item}=VALUE")
        index += 1
    return plain, overrides


def _parse(override: str) -> tuple[str, str]:
    key, _, value = override.removeprefix("--config.").partition("=")
    return key, value


def _get_config(path: Path, arg: str) -> ml_collections.ConfigDict:
    if not path.exists():
        raise UserError(f"--config: {path} does not exist; see the files in configs/")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"--config: {path} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config: {path} has no get_config()")
    return module.get_config(arg) if arg else module.get_config()


def _override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    *parents, last = key.split(".")
    node: Any = config
    for index, part in enumerate([*parents, last]):
        if not isinstance(node, ml_collections.ConfigDict) or part not in node:
            options = list(node) if isinstance(node, ml_collections.ConfigDict) else []
            near = difflib.get_close_matches(part, options, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(options) or 'no fields'}"
            where = ".".join(["config", *key.split(".")[:index]])
            raise UserError(f"--config.{key}: {where} has no field {part!r}; {hint}")
        if part != last or index < len(parents):
            node = node[part]
    old = node[last]
    node[last] = _value(key, text, old)


def _value(key: str, text: str, old: Any) -> Any:
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, tuple) and isinstance(value, list):
        value = tuple(value)
    if old is not None and type(value) is not type(old):
        raise UserError(f"--config.{key}={text}: expected a {type(old).__name__}, got a {type(value).__name__}")
    return value
