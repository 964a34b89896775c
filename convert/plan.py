"""What a name map makes of a checkpoint: for every parameter, the tensors it is filled from; and reading by slices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from flax.traverse_util import unflatten_dict

from convert.rules import Layout, Rule
from spatialllm_jax.errors import UserError

State = Mapping[str, np.ndarray]
_BLOCK = 1 << 26  # bytes that are copied, checked and written at a time


class Piece(NamedTuple):
    """A source tensor, or the k-th of n equal parts of its rows."""

    tensor: str
    part: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Fill:
    """One parameter and where its values come from.

    Attributes:
        target: its path.
        shape: of the parameter, layers included.
        dtype: of the tensors.
        layout: how one tensor lies here and there.
        pieces: one for each layer, or the only one.
        stacked: whether the leading axis counts layers.
    """

    target: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    layout: Layout
    pieces: tuple[Piece, ...]
    stacked: bool

    def view(self, state: State, layer: int) -> np.ndarray:
        """The values of one layer as they lie here, without a copy where the layout allows."""
        name, part = self.pieces[layer]
        tensor = state[name]
        if part is not None:
            rows = len(tensor) // part[1]
            tensor = tensor[part[0] * rows:(part[0] + 1) * rows]
        return self.layout.to_jax(tensor)

    def read(self, state: State, index: Sequence[slice] | None = None, dtype: Any = None) -> np.ndarray:
        """A slice of the parameter (all of it without `index`); only what it needs is read.

        Raises:
            UserError: the values are not finite.
        """
        index = tuple(index) if index is not None else (slice(None),) * len(self.shape)
        rest = index[1:] if self.stacked else index
        layers = range(len(self.pieces))[index[0]] if self.stacked else range(1)
        out: np.ndarray | None = None
        for place, layer in enumerate(layers):
            view = np.atleast_1d(self.view(state, layer)[rest])
            if out is None:
                out = np.empty((len(layers), *view.shape), self.dtype if dtype is None else dtype)
            for start, block in blocks(view, self.pieces[layer].tensor):
                out[place, start:start + len(block)] = block
        assert out is not None, "a slice without layers"
        return out if self.stacked else out[0].reshape(out.shape[1:] if self.shape else ())


def filled(state: State, fills: Iterable[Fill], dtype: Any = None) -> dict[str, Any]:
    """The nested parameters of a plan, in memory; `convert.stream` does the same from disk to disk."""
    return unflatten_dict({tuple(fill.target.split("/")): fill.read(state, dtype=dtype) for fill in fills})


def blocks(view: np.ndarray, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of an array, in contiguous pieces of bounded size.

    Raises:
        UserError: a value is not finite.
    """
    view = np.atleast_1d(view)
    step = max(1, _BLOCK // max(1, view.nbytes // max(1, len(view))))
    for start in range(0, max(1, len(view)), step):
        yield start, _finite(_contiguous(view[start:start + step]), name)


def _contiguous(view: np.ndarray) -> np.ndarray:
    if view.flags.c_contiguous or view.ndim < 2:
        return np.ascontiguousarray(view)
    # XLA transposes on the way in, ten times as fast as numpy.
    with jax.enable_x64():
        return np.asarray(jax.device_put(view, jax.local_devices(backend="cpu")[0]))


def _finite(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype.itemsize == 2 and values.dtype.kind in "fV":
        # The exponent's bits, since arithmetic on 16-bit floats is slow: 5 of them in float16, 8 in bfloat16.
        exponent = np.uint16(0x7C00 if values.dtype == np.float16 else 0x7F80)
        flat = values.reshape(-1).view(np.uint16)
        good = all(((flat[a:a + (1 << 18)] & exponent) != exponent).all() for a in range(0, flat.size, 1 << 18))
    else:
        good = values.dtype.kind in "iub" or bool(np.isfinite(values.astype(np.float32, copy=False)).all())
    if not good:
        raise UserError(f"tensor {name} holds values that are not finite; the checkpoint is damaged")
    return values


def make_plan(state: State, rules: Sequence[Rule], ignored: Iterable[str], shapes: Mapping[str, tuple[int, ...]],
              family: str) -> list[Fill]:
    """One `Fill` per parameter, all checked before anything is read.

    Args:
        state: tensor name -> array; of the arrays only shape and type are looked at.
        ignored: patterns of tensors that are dropped on purpose.
        shapes: parameter -> shape.
        family: for messages.

    Raises:
        UserError: tensors missing, left over, present under two names, or of another shape.
    """
    complete([rule.target for rule in rules], shapes)
    names, patterns = set(state), [re.compile(pattern) for pattern in ignored]
    missing: list[str] = []
    fills: list[Fill] = []
    used: set[str] = set()
    for rule in rules:
        pieces: list[Piece] = []
        for layer in range(rule.depth) if rule.depth is not None else [None]:
            spellings = [source.format(i=layer) for source in rule.sources]
            found = [s for s in spellings if s.partition("@")[0] in names]
            if len(found) > 1:
                raise UserError(f"the checkpoint holds {rule.target} twice: {' and '.join(found)}; keep one of them")
            if not found:
                missing.append(spellings[0])
                continue
            name, _, part = found[0].partition("@")
            used.add(name)
            k, _, n = part.partition("/")
            pieces.append(Piece(name, (int(k), int(n)) if part else None))
        if pieces:
            fills.append(Fill(rule.target, tuple(shapes[rule.target]), state[pieces[0].tensor].dtype, rule.layout,
                              tuple(pieces), rule.depth is not None))
    unused = [n for n in sorted(names - used) if not any(p.fullmatch(n) for p in patterns)]
    if missing or unused:
        raise UserError(f"the checkpoint does not fit the {family} model: missing {listed(missing)}; "
                        f"left over {listed(unused)}; check that config and checkpoint belong together")
    if dropped := sorted(names - used):
        logging.info("%d tensors of the checkpoint are not needed here: %s", len(dropped), listed(dropped))
    for fill in fills:
        for layer, piece in enumerate(fill.pieces):
            _check_shape(fill, layer, piece, state[piece.tensor])
    return fills


def _check_shape(fill: Fill, layer: int, piece: Piece, tensor: np.ndarray) -> None:
    expected = fill.shape[1:] if fill.stacked else fill.shape
    try:
        if piece.part is not None and len(tensor) % piece.part[1]:
            raise ValueError("the parts are not of equal size")
        # One byte that looks like the tensor: layouts move it without memory.
        shape = fill.view({piece.tensor: np.broadcast_to(np.int8(0), tensor.shape)}, layer).shape
    except (ValueError, RuntimeError, TypeError):
        shape = None
    if shape != expected:
        raise UserError(f"tensor {piece.tensor} of shape {tensor.shape} does not fit {fill.target}, which expects "
                        f"{expected}; check that config and checkpoint belong together")
    if tensor.dtype != fill.dtype:
        raise UserError(f"the layers of {fill.target} have different types, {fill.dtype} and {tensor.dtype} "
                        f"({piece.tensor}); the checkpoint is damaged")


def complete(targets: Iterable[str], params: Iterable[str]) -> None:
    """Raises UserError unless rules and parameters match one to one."""
    targets = list(targets)
    twice = sorted({t for t in targets if targets.count(t) > 1})
    unfilled, unknown = sorted(set(params) - set(targets)), sorted(set(targets) - set(params))
    if twice or unfilled or unknown:
        raise UserError(f"name map and parameters differ: parameters without a rule {listed(unfilled)}; rules "
                        f"without a parameter {listed(unknown)}; filled twice {listed(twice)}")


def listed(names: Sequence[str], limit: int = 8) -> str:
    """Names for a message, the first few of many."""
    if not names:
        return "nothing"
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
