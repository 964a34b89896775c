"""Safetensors files by slices: read through a memory map, written in place, never whole in memory.

The format: 8 bytes length of the header, the header (JSON: name -> dtype, shape, begin and end), then the tensors'
bytes, without gaps. Reading gives views of the map, so a slice costs the pages it touches and no more.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np

from spatialllm_jax.errors import UserError

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U64": np.dtype(np.uint64), "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_)}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # the format's own limit
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        file: the file.
        begin: its first byte, counted from the start of the file.
    """

    file: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: Path) -> dict[str, Entry]:
    """Name -> place of every tensor of a file, checked against the file's size.

    Raises:
        UserError: the file is not safetensors, is cut off, or holds a type that is not known here.
    """
    def refused(why: str) -> UserError:
        return UserError(f"{file} is not a readable safetensors file ({why}); fetch it again")

    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise refused("it has no header")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            entries = {}
            for name, entry in header.items():
                if entry["dtype"] not in DTYPES:
                    raise UserError(f"{file}: tensor {name} has the type {entry['dtype']}, which is not supported; "
                                    f"{', '.join(DTYPES)} are")
                begin, end = entry["data_offsets"]
                entries[name] = Entry(file, DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + begin)
                if entries[name].nbytes != end - begin or begin < 0:
                    raise refused(f"tensor {name} has {end - begin} bytes where its shape needs "
                                  f"{entries[name].nbytes}")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise refused("its header is damaged") from None
    expected = 8 + length + sum(entry.nbytes for entry in entries.values())
    if size < expected:
        raise refused(f"it is cut off: {size} bytes of {expected}")
    if size > expected:
        raise refused(f"it has {size - expected} bytes behind its tensors")
    return entries


class TensorFiles(Mapping[str, np.ndarray]):
    """The tensors of all safetensors files of a folder, or of one file: read-only views of memory maps.

    Raises:
        UserError: no such folder or nothing in it, a broken file, a tensor in two files, or a shard that the index
            names but the folder lacks.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.exists():
            raise UserError(f"{path} does not exist; give a folder (or file) of safetensors")
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        index = path / INDEX
        if path.is_dir() and index.is_file():
            try:
                shards = {str(shard) for shard in json.loads(index.read_text())["weight_map"].values()}
            except (ValueError, KeyError, AttributeError):
                raise UserError(f"{index} is not an index of safetensors; fetch it again") from None
            if lacking := sorted(shards - {file.name for file in files}):
                raise UserError(f"{path} lacks {', '.join(lacking)}, which {index.name} names; fetch it again")
            # Folders may hold the same weights in another layout beside the shards; the index decides.
            files = [path / shard for shard in sorted(shards)]
        if not files:
            raise UserError(f"{path} holds no *.safetensors; give the folder that holds the weights")
        self.entries: dict[str, Entry] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        for file in files:
            for name, entry in read_header(file).items():
                if name in self.entries:
                    raise UserError(f"tensor {name} is in both {self.entries[name].file.name} and {file.name}; "
                                    "keep one")
                self.entries[name] = entry
            with file.open("rb") as stream:
                self._maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        flat = np.frombuffer(self._maps[entry.file], entry.dtype, math.prod(entry.shape), entry.begin)
        return flat.reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def release(self, name: str) -> None:
        """Gives the memory of a tensor's pages back; they are read again when asked for."""
        entry = self.entries[name]
        start = entry.begin // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED"):
            self._maps[entry.file].madvise(mmap.MADV_DONTNEED, start, entry.begin + entry.nbytes - start)


class TensorWriter:
    """A safetensors file of known tensors, filled piece by piece in any order, from any thread.

    Use as a context manager; leaving it checks that every byte was written.
    """

    def __init__(self, file: Path, tensors: Mapping[str, tuple[tuple[int, ...], Any]],
                 metadata: Mapping[str, str] | None = None) -> None:
        """Creates the file at its full size, so that a disk too small is known at once.

        Args:
            tensors: name -> (shape, dtype).
        """
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        # Wide types first keeps every tensor aligned to its own width.
        order = sorted(tensors, key=lambda name: (-np.dtype(tensors[name][1]).itemsize, name))
        begin = 0
        for name in order:
            shape, dtype = tensors[name]
            end = begin + math.prod(shape) * np.dtype(dtype).itemsize
            header[name] = {"dtype": _NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [begin, end]}
            begin = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        offset = 8 + len(text)
        self.entries = {name: Entry(file, np.dtype(tensors[name][1]), tuple(tensors[name][0]),
                                    offset + header[name]["data_offsets"][0]) for name in order}
        self._left = {name: entry.nbytes for name, entry in self.entries.items()}
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        if offset + begin and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._fd, 0, offset + begin)
        else:
            os.ftruncate(self._fd, offset + begin)
        _write_all(self._fd, len(text).to_bytes(8, "little") + text, 0)

    def write(self, name: str, value: np.ndarray, at: tuple[int, ...] = ()) -> None:
        """Writes a contiguous piece.

        Args:
            value: of the tensor's type; fills consecutive elements from position `at`.
            at: index of the piece's first element, on the leading axes; () = the whole tensor's first.
        """
        entry = self.entries[name]
        if value.dtype != entry.dtype:
            raise TypeError(f"{name} is {entry.dtype}, not {value.dtype}")
        strides = [math.prod(entry.shape[axis + 1:]) for axis in range(len(at))]
        first = sum(index * stride for index, stride in zip(at, strides, strict=True))
        if first + value.size > math.prod(entry.shape):
            raise ValueError(f"a piece of {value.shape} at {at} does not fit into {name} {entry.shape}")
        _write_all(self._fd, np.ascontiguousarray(value).reshape(-1).view(np.uint8).data,
                   entry.begin + first * entry.dtype.itemsize)
        self._left[name] -= value.nbytes

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        os.close(self._fd)
        unfilled = sorted(name for name, left in self._left.items() if left)
        if kind is None and unfilled:
            raise RuntimeError(f"tensors not written to their end: {', '.join(unfilled[:8])}")


def _write_all(fd: int, data: bytes | memoryview, at: int) -> None:
    """Writes all of `data`; the system may take less than all at a time."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written
