"""What a name map is made of: rules from a tensor's names in PyTorch checkpoints to a parameter's path here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from einops import rearrange


class Layout(NamedTuple):
    """How one array lies here (`to_jax`) and in the checkpoint (`to_torch`)."""

    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


def patches(patch: int) -> Layout:
    """A patch convolution `[D, 3, p, p]` as a linear on flattened patches `[p p 3, D]`."""
    return Layout(lambda w: rearrange(w, "d c p q -> (p q c) d"),
                  lambda w: rearrange(w, "(p q c) d -> d c p q", p=patch, q=patch))


# Activations that transformers calls otherwise; it has two names for the approximate GELU.
_TO_HF = {"gelu_tanh": "gelu_pytorch_tanh"}
_FROM_HF = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


def activation_to_hf(name: str) -> str:
    """transformers' name of `VisionConfig.activation`."""
    return _TO_HF.get(name, name)


def activation_from_hf(name: str) -> str:
    """`VisionConfig.activation` for transformers' hidden_act."""
    return _FROM_HF.get(name, name)


SAME = Layout(lambda w: w, lambda w: w)
LINEAR = Layout(lambda w: rearrange(w, "o i -> i o"), lambda w: rearrange(w, "i o -> o i"))
TOKEN = Layout(lambda w: w.reshape(w.shape[-1]), lambda w: w.reshape(1, 1, -1))
TABLE = Layout(lambda w: rearrange(w, "1 n d -> n d"), lambda w: rearrange(w, "n d -> 1 n d"))


@dataclass(frozen=True)
class Rule:
    """One parameter.

    Attributes:
        target: its path here; with "{i}" in the sources, stacked over layers on a leading axis.
        sources: its names in checkpoints, of which exactly one must be present; the first is what export
            writes. "name@k/n" is the k-th of n equal parts of the tensor's rows.
        depth: number of layers that "{i}" runs over.
    """

    target: str
    sources: tuple[str, ...]
    layout: Layout = SAME
    depth: int | None = None

    def nested(self, target: str, prefixes: tuple[str, ...]) -> Rule:
        """This rule for a model inside another: below `target`, its names behind any of `prefixes`."""
        sources = tuple(prefix + source for prefix in prefixes for source in self.sources)
        return replace(self, target=f"{target}/{self.target}" if target else self.target, sources=sources)


def linear(target: str, *names: str, depth: int | None = None, bias: bool = True) -> list[Rule]:
    """A linear layer: kernel and, unless told otherwise, bias. `names` end before ".weight"; a part "@k/n"
    goes behind that."""
    def spelled(kind: str) -> tuple[str, ...]:
        parts = (name.partition("@") for name in names)
        return tuple(f"{name}.{kind}{at}{part}" for name, at, part in parts)

    rules = [Rule(f"{target}/kernel", spelled("weight"), LINEAR, depth)]
    return [*rules, Rule(f"{target}/bias", spelled("bias"), SAME, depth)] if bias else rules


def norm(target: str, *names: str, depth: int | None = None, bias: bool = True) -> list[Rule]:
    """A normalisation layer: scale and, unless told otherwise, bias."""
    rules = [Rule(f"{target}/scale", tuple(f"{name}.weight" for name in names), SAME, depth)]
    return [*rules, Rule(f"{target}/bias", tuple(f"{name}.bias" for name in names), SAME, depth)] if bias else rules
