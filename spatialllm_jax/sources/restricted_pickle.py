"""Pickled data in .npz files, read without running what is in them.

`numpy.load(..., allow_pickle=True)` calls whatever function a file names. Here only the functions that
rebuild numpy's arrays, scalars and dtypes are admitted, under the module names of numpy 1 and 2, and
they are replaced by strict ones: arrays of plain numbers and text, or object arrays, and nothing else.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from spatialllm_jax.errors import UserError

# Members larger than this are no annotations; a small zip can unfold into any number of bytes.
MAX_BYTES = 64 * 2**20
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")


class _Forbidden(pickle.UnpicklingError):
    """Something other than data; the message names it."""


class _DType:
    """A dtype under construction: numbers and text of one byte order, or "O"; no fields."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str):
            raise _Forbidden(f"the dtype {code!r}")
        self.value = np.dtype(code)
        if self.value.kind not in "biufcSUO" or self.value.subdtype is not None:
            raise _Forbidden(f"the dtype {code!r}")

    def __setstate__(self, state: Any) -> None:
        _version, order, *rest = state
        if any(field is not None for field in rest[:3]):  # subdtype, names, fields
            raise _Forbidden("a dtype with fields")
        self.value = self.value.newbyteorder(order)


class _Array:
    """An array under construction: `value` once its state has been checked."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, content = state
        self.value = _array(content, dtype, shape, "F" if fortran else "C")


_NDARRAY = object()  # what numpy.ndarray is here: a name that can be compared but not called


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    kind = _value_of(dtype)
    shape = tuple(int(n) for n in shape)
    if kind.kind == "O":
        if not isinstance(content, list) or len(content) != math.prod(shape):
            raise _Forbidden("an object array that is not a list of its items")
        flat = np.empty(len(content), object)
        for index, item in enumerate(content):
            flat[index] = item
        return flat.reshape(shape, order=order)
    return np.frombuffer(_bytes(content), kind).reshape(shape, order=order).copy(order)


def _value_of(dtype: Any) -> np.dtype:
    if not isinstance(dtype, _DType):
        raise _Forbidden(f"an array of {dtype!r}")
    return dtype.value


def _bytes(content: Any) -> bytes:
    return content.encode("latin1") if isinstance(content, str) else content


def _reconstruct(kind: Any, _shape: Any, _code: Any) -> _Array:
    if kind is not _NDARRAY:
        raise _Forbidden(f"the array type {kind!r}")
    return _Array()


def _scalar(dtype: Any, content: Any = b"") -> Any:
    kind = _value_of(dtype)
    if kind.kind == "O":
        raise _Forbidden("a scalar object")
    (value,) = np.frombuffer(_bytes(content), kind) if kind.itemsize else np.zeros(1, kind)
    return value


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes as Python 2's protocol writes them."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Forbidden(f"the encoding {encoding!r}")
    return text.encode("latin1")


class _Call:
    """What stands for an admitted function: can be called, but not given a state as pickles may ask for."""

    __slots__ = ("_run",)

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, *values: Any) -> Any:
        if self._run is bytes and values:  # bytes(n) would take any amount of memory
            raise _Forbidden("bytes of a value")
        return self._run(*values)

    def __setstate__(self, state: Any) -> None:
        raise _Forbidden("a change of what this reader admits")


_ALLOWED: dict[tuple[str, str], Any] = {
    **{(module, "_reconstruct"): _Call(_reconstruct) for module in _MODULES},
    **{(module, "scalar"): _Call(_scalar) for module in _MODULES},
    **{(module, "_frombuffer"): _Call(_array) for module in _MODULES},  # protocol 5
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Call(_DType),
    ("_codecs", "encode"): _Call(_encode),
    **{
        (module, kind.__name__): _Call(kind)
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, complex, bytes)
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Forbidden(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Forbidden("a persistent id")


def loads(content: bytes, name: str) -> Any:
    """The pickled value in `content`; `name` is the file's, for errors.

    Raises:
        UserError: when it names anything but numpy's data types, or is not a pickle.
    """
    try:
        return _release(_Unpickler(io.BytesIO(content)).load(), {})
    except _Forbidden as error:
        raise UserError(
            f"{name} asks for {error}, which annotations do not need and which is not run; do not use this file"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{name} holds no readable pickle ({type(error).__name__}: {error}); fetch it again") from error


def _release(value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """The value with plain arrays for those under construction; `done` by id, so that shared parts stay shared."""
    if not isinstance(value, (_Array, _DType, np.ndarray, dict, list, tuple, set, frozenset)):
        return value
    if id(value) in done:
        if done[id(value)][1] is _NDARRAY:
            raise _Forbidden("a value that contains itself")
        return done[id(value)][1]
    done[id(value)] = value, _NDARRAY  # holds the value, or its id might be given to another
    result: Any
    if isinstance(value, _Array):
        if value.value is None:
            raise _Forbidden("an array without data")
        result = _release(value.value, done)
    elif isinstance(value, _DType):
        result = value.value
    elif isinstance(value, np.ndarray):
        result = value
        if value.dtype == object:
            for index in np.ndindex(value.shape):
                value[index] = _release(value[index], done)
    elif isinstance(value, dict):
        result = {key: _release(item, done) for key, item in value.items()}
    else:
        result = type(value)(_release(item, done) for item in value)
    done[id(value)] = value, result
    return result


def read_npz(path: Path, key: str) -> Any:
    """The array `key` of an .npz file, or the value in it where it is a 0-dimensional object array.

    Raises:
        UserError: for a missing or damaged file, no such array, or data that only running code could read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = next((m for m in (f"{key}.npy", key) if m in archive.namelist()), None)
            if member is None:
                raise UserError(f"{path} has no array {key!r}; it is not an annotation file of ImageNet3D")
            with archive.open(member) as file:
                content = file.read(MAX_BYTES + 1)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} is missing; fetch it") from None
    except Exception as error:  # a damaged archive may raise anything
        raise UserError(f"{path} is not a readable .npz file ({error}); fetch it again") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"array {key!r} of {path} unfolds to more than {MAX_BYTES} bytes; do not use this file")
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream)
        if not dtype.hasobject:
            values = np.frombuffer(stream.read(), dtype)
            return values.reshape(shape, order="F" if fortran else "C")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"array {key!r} of {path} is damaged ({error}); fetch it again") from error
    value = loads(stream.read(), str(path))
    if shape == () and isinstance(value, np.ndarray) and value.shape == ():
        return value.item()
    return value
