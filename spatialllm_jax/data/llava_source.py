"""LLaVA JSON as it comes (CC558K, Mix665K): random access to a list of conversations of a gigabyte.

The file is parsed once to learn where its elements lie (two numbers each, about 10 MB for Mix665K) and is never
held as Python objects: an element is read and parsed when it is asked for, its picture only when its pixels are
wanted (`ImageRecord.file`). Facts about the layout: `[{id, image?, conversations: [{from, value}]}]`, `from`
being "human" or "gpt"; a sample without `image` is text alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.types import Question

PLACEHOLDER = "<image>"
_CHUNK = 8 << 20
_LARGEST = 64 << 20     # no element is this long: what cannot be parsed by then is broken, not cut by the buffer


class MalformedSample(UserError):
    """An element that is no conversation; the input pipeline skips a few of them."""


@dataclasses.dataclass
class LlavaSource:
    """Records of a LLaVA JSON file: `len(source)`, `source[i] -> ImageRecord` with one question of all turns.

    The file is opened on first use and dropped when pickled, so that workers open their own.

    Attributes:
        path: the file.
        images: folder that image paths start from.
        starts, ends: byte offsets of the list's elements.
    """

    path: str
    images: str
    starts: np.ndarray = dataclasses.field(repr=False)
    ends: np.ndarray = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        self._descriptor: int | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> ImageRecord:
        """The record. Raises MalformedSample when the element is no conversation (`record_of`)."""
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        return record_of(json.loads(self._read(index)), index, self.path, self.images)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            os.close(self._descriptor)      # type: ignore[arg-type]

    def _read(self, index: int) -> bytes:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        start, end = int(self.starts[index]), int(self.ends[index])
        return os.pread(self._descriptor, end - start, start)   # leaves no position behind: threads share the file


def open_llava(path: str | os.PathLike[str], images: str | os.PathLike[str] = "") -> LlavaSource:
    """Opens a LLaVA JSON file; its index is built once per process and file.

    Args:
        images: folder that image paths start from; the file's own if empty.

    Raises:
        UserError: the file is missing or no JSON list, or the folder is missing.
    """
    path = Path(path)
    folder = Path(images) if str(images) else path.parent
    try:
        status = path.stat()
    except OSError:
        raise UserError(f"{path} does not exist; name a LLaVA JSON file or a dataset folder") from None
    if not folder.is_dir():
        raise UserError(f"image folder {folder} of {path} does not exist; set `images` to where its pictures lie")
    return LlavaSource(str(path), str(folder), *_offsets(str(path), status.st_size, status.st_mtime_ns))


def record_of(entry: Any, index: int, path: str, images: str) -> ImageRecord:
    """An element of the list as a record: all its turns are one question, "caption" if there is one, else "what".

    As LLaVA does, a reply in front of the first question and a question without a reply are left out.

    Raises:
        MalformedSample: no conversation of human and gpt in turn; more than one image; an image path that leaves
            the folder; an image placeholder without an image.
    """
    where = f"sample {index} of {path}"
    try:
        key, name, turns = str(entry.get("id", index)), entry.get("image"), list(entry["conversations"])
        if turns and turns[0]["from"] == "gpt":
            turns = turns[1:]
        roles = [turn["from"] for turn in turns]
        values = [turn["value"].strip() for turn in turns]
    except (KeyError, TypeError, AttributeError) as error:
        raise MalformedSample(f"{where} is no conversation ({error!r}); fix or remove it") from None
    if roles != (["human", "gpt"] * len(roles))[:len(roles)] or len(roles) < 2:
        raise MalformedSample(f"{where} does not go human, gpt, human, gpt; fix or remove it")
    if name is not None and not isinstance(name, str):
        raise MalformedSample(f"{where} has an image that is not one path; one image per sample is supported")
    if sum(value.count(PLACEHOLDER) for value in values[::2]) > bool(name):
        raise MalformedSample(f"{where} says {PLACEHOLDER} more often than it has images; fix or remove it")
    pairs = tuple((values[k].replace(PLACEHOLDER, "").strip(), values[k + 1]) for k in range(0, len(values) - 1, 2))
    question = Question(id=f"{key}/0", image=name or key, type="caption" if len(pairs) == 1 else "what",
                        group="general", source="llava", turns=pairs)
    file = _inside(images, name, where) if name else ""
    return ImageRecord(image_id=name or key, image=b"", width=0, height=0, questions=(question,), file=file)


def _inside(folder: str, name: str, where: str) -> str:
    # By the text alone: links within the folder may point anywhere, that is how people join their data sets.
    if os.path.isabs(name) or os.path.normpath(name).startswith(".."):
        raise MalformedSample(f"image path {name!r} of {where} leaves {folder}; paths must stay inside")
    return os.path.join(folder, name)


@functools.lru_cache(maxsize=8)
def _offsets(path: str, size: int, changed: int) -> tuple[np.ndarray, np.ndarray]:
    """(starts, ends) of the list's elements in bytes; `size` and `changed` make the cache notice a new file.

    Text is taken as Latin-1, where a character is a byte: JSON's marks are ASCII, so UTF-8 inside strings does
    not move them.
    """
    starts: list[int] = []
    ends: list[int] = []
    with open(path, "rb") as file:
        text = file.read(_CHUNK).decode("latin-1")
        base = 3 if text.startswith("\xef\xbb\xbf") else 0
        text, position = text[base:], 0
        if text.lstrip()[:1] not in ("[", ""):
            raise UserError(f"{path} must hold a list of samples, as LLaVA's files do")
        while True:
            try:
                found = _next_element(text, position, first=not starts)
            except (ValueError, IndexError) as error:
                more = file.read(_CHUNK).decode("latin-1")
                if not more or len(text) - position > _LARGEST:
                    raise UserError(f"{path} is no JSON list from byte {base + position} on ({error}); it may be cut "
                                    "short, fetch it again") from None
                base, text, position = base + position, text[position:] + more, 0
                continue
            if found is None:
                return np.array(starts, np.int64), np.array(ends, np.int64)
            starts.append(base + found[0])
            ends.append(base + found[1])
            position = found[1]


_MARK = re.compile(r"[ \t\r\n]*([\[\],])[ \t\r\n]*")
_parse = json.JSONDecoder().raw_decode


def _next_element(text: str, position: int, first: bool) -> tuple[int, int] | None:
    """(start, end) of the element after `position`, None behind the last one. ValueError or IndexError when the
    text is broken or ends too early."""
    mark = _MARK.match(text, position)
    if mark is None or mark[1] not in ("[" if first else ",]"):
        raise ValueError("no comma or bracket")
    if mark[1] == "]" or (first and text[mark.end()] == "]"):
        return None
    end = _parse(text, mark.end())[1]
    if end == len(text):
        raise ValueError("the list does not end")   # and a number might go on in the next chunk
    return mark.end(), end
