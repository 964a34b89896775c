"""Which parameters train: flat views of the parameter tree, split by path.

Paths are '/'-joined keys ("llm/layers/attention/q/kernel"). Frozen parameters are not differentiated and
carry no optimizer moments (DESIGN: performance rules).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util as traverse_util
import jax

from spatialllm_jax.errors import UserError

Flat = dict[str, Any]


def flatten(params: Mapping[str, Any]) -> Flat:
    """Nested dict -> {path: leaf}."""
    return traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{path: leaf} -> nested dict."""
    return traverse_util.unflatten_dict(flat, sep="/")


def split(flat: Mapping[str, Any], trainable: str) -> tuple[Flat, Flat]:
    """(trainable, frozen) leaves; a path trains when the regular expression matches at its start.

    Raises UserError when the expression is malformed or matches nothing.
    """
    try:
        pattern = re.compile(trainable)
    except re.error as error:
        raise UserError(f"trainable={trainable!r} is not a regular expression: {error}") from None
    chosen = {path: leaf for path, leaf in flat.items() if pattern.match(path)}
    if not chosen:
        tops = sorted({path.split("/")[0] for path in flat})
        raise UserError(f"trainable={trainable!r} matches no parameter; the tree has {', '.join(tops)}")
    return chosen, {path: leaf for path, leaf in flat.items() if path not in chosen}


def count(flat: Mapping[str, jax.Array]) -> int:
    """Number of scalars."""
    return sum(leaf.size for leaf in flat.values())
