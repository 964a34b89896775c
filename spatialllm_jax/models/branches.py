"""Numbers of branches: questions beside each other on one trunk, and questions beside each other on one stem."""

from __future__ import annotations

from typing import Any

_BITS = 16


def twig(branch: Any, number: Any) -> Any:
    """The number of a branch's own branch, both counted from 1 and below 65,536."""
    return branch + (number << _BITS)


def on_path(key: Any, query: Any) -> Any:
    """Whether a key's branch lies between the trunk (0) and a query's branch, that one included: a query sees its own
    branch, the branch that this one springs from, and the trunk. Works on whatever compares and broadcasts."""
    return (key == 0) | (key == query) | (key == query & ((1 << _BITS) - 1))
