"""Rows of the files that benchmarks are published as: TSV, CSV, JSON, JSONL and parquet, one at a time.

A fault of the whole file (missing, empty, no such column) is a UserError; one of a single row is a `BadRow`, which
the evaluation counts and skips.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation.items import NUMBERED
from spatialllm_jax.inference.prompts import PLACE
from spatialllm_jax.questions.wording import LETTERS

SUFFIXES = (".tsv", ".csv", ".json", ".jsonl", ".parquet")
_SHORT = 64   # characters; a VLMEvalKit image of fewer is the index of another row


class BadRow(Exception):
    """Why one row cannot be asked."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: its values, `where` it is (for messages), and the folders that its picture may lie in."""

    where: str
    values: Mapping[str, Any]
    folders: tuple[Path, ...]

    def get(self, key: str, default: Any = None) -> Any:
        """A value, `default` when it is missing or empty."""
        value = self.values.get(key)
        return default if value is None or value == "" else value

    def need(self, key: str) -> Any:
        """A value that must be there."""
        value = self.get(key)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise BadRow(f"column {key!r} is empty or missing")
        return value

    def text(self, key: str) -> str:
        """A text that must not be empty."""
        return str(self.need(key)).strip()

    def options(self, key: str = "") -> tuple[str, ...]:
        """A list of at least two different options: column `key`, or the columns A, B, C, ... up to a gap."""
        if key:
            value = self.need(key)
            if isinstance(value, str):
                try:
                    value = json.loads(value)
                except json.JSONDecodeError:
                    raise BadRow(f"column {key!r} is no list of options") from None
            found = [str(option).strip() for option in value]
        else:
            found = [str(self.get(letter, "")).strip() for letter in LETTERS]
            found = ["" if option.lower() == "nan" else option for option in found]
            while found and not found[-1]:
                found.pop()
        if len(found) < 2 or not all(found) or len(found) > len(LETTERS):
            raise BadRow(f"it has {sum(map(bool, found))} options in {len(found)} places; two to {len(LETTERS)} "
                         "without gaps are needed")
        return tuple(found)

    def letter(self, key: str, options: Sequence[str]) -> int:
        """Index of the option that the letter in column `key` ("B", "(B)") names."""
        text = self.text(key)
        found = re.fullmatch(r"\(?([A-Za-z])\)?\.?", text)
        index = ord(found[1].upper()) - ord("A") if found else -1
        if not 0 <= index < len(options):
            raise BadRow(f"answer {text[:40]!r} is none of its {len(options)} options")
        return index

    def nested(self, key: str) -> Any:
        """A list or a mapping that must be there; some parquet files hold them as text, JSON's or Python's."""
        value = self.need(key)
        return _literal(value, f"column {key!r} is no list and no record") if isinstance(value, str) else value

    def pictures(self, key: str) -> tuple[bytes, ...]:
        """The encoded pictures in column `key`: one, or a list of them (VLMEvalKit writes it as a text)."""
        value = self.need(key)
        if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
            value = _literal(value, f"column {key!r} is no list of pictures")
        if not isinstance(value, list):
            return (self.picture(key),)
        if not value:
            raise BadRow(f"column {key!r} holds no picture")
        return tuple(dataclasses.replace(self, values={key: one}).picture(key) for one in value)

    def picture(self, key: str) -> bytes:
        """The encoded picture in column `key`: bytes, parquet's {bytes, path}, base64, or a file's name."""
        value = self.need(key)
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path") or b""
        if isinstance(value, bytes):
            if not value:
                raise BadRow(f"column {key!r} holds an empty picture")
            return value
        text = str(value)
        if len(text) <= 1024 and re.search(r"\.\w{3,4}$", text):
            return self._file(text)
        try:
            return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
        except (binascii.Error, ValueError):
            raise BadRow(f"column {key!r} is neither base64 nor a file's name") from None

    def _file(self, name: str) -> bytes:
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise BadRow(f"image path {name!r} leaves the benchmark's folder")
        for folder in self.folders:
            if (folder / name).is_file():
                return (folder / name).read_bytes()
        raise BadRow(f"picture {name!r} is not in {' or '.join(map(str, self.folders))}")


def _literal(text: str, why: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
    raise BadRow(why)


def numbered(texts: Sequence[str], pictures: int) -> list[str]:
    """Texts whose places ("<image>") are numbered in order, so that they can change theirs; see `items.Item.more`.

    Raises:
        BadRow: they name a picture that there is none of, or have places and not as many as pictures.
    """
    count = iter(range(1, 1 + sum(text.count(PLACE) for text in texts)))
    found = [re.sub(re.escape(PLACE), lambda _: f"<image {next(count)}>", text) for text in texts]
    places = sum(text.count(PLACE) for text in texts)
    named = [int(number) for text in found for number in NUMBERED.findall(text)]
    if places not in (0, pictures) or not all(1 <= number <= pictures for number in named):
        raise BadRow(f"its text has places for {max([places, *named])} pictures, and it has {pictures}")
    return found


def image_id(image: bytes) -> str:
    """A name for a picture by its content, so that questions that share it are known to."""
    return hashlib.sha256(image).hexdigest()[:16]


def find_files(path: Path, names: Sequence[str], flag: str = "--data") -> list[Path]:
    """The benchmark's files: `path` itself, or within the folder `path` those that match the first fitting pattern."""
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise UserError(f"{flag} {path} ends in none of {', '.join(SUFFIXES)}; give the benchmark's own file")
        return [path]
    if not path.is_dir():
        raise UserError(f"{flag} {path} does not exist; give the benchmark's file, or the folder that holds it")
    for name in names:
        if found := sorted(file for file in path.glob(name) if file.is_file()):
            return found
    raise UserError(f"{flag} {path} holds no {' or '.join(names)}; give the benchmark's file itself")


def read_rows(files: Sequence[Path], columns: Sequence[str], images: Path | None = None) -> Iterator[Row | BadRow]:
    """All rows of the files, in order; a BadRow ("where: why") in place of one that cannot be parsed.

    Args:
        columns: that every row of the format has ("a or b": one of them); a table without one is not this benchmark's
            file.
        images: folder of pictures; else the files' own, and "images", "img" and "image" beside them.

    Raises:
        UserError: a file is missing or empty, cannot be parsed as a whole, or has no such column.
    """
    for file in files:
        beside = (file.parent, *(file.parent / name for name in ("images", "img", "image")))
        folders = (images,) if images else beside
        count = 0
        try:
            for where, values in _READERS[file.suffix](file, columns):
                count += 1
                yield BadRow(f"{where}: {values}") if isinstance(values, str) else Row(where, values, folders)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{file} cannot be read after row {count} ({error}); download it again") from None
        if not count:
            raise UserError(f"{file} holds no rows; download it again")


_Pair = tuple[str, Mapping[str, Any] | str]   # where, values or what is wrong


def _table(file: Path, columns: Sequence[str]) -> Iterator[_Pair]:
    csv.field_size_limit(1 << 30)
    shared = _shared_pictures(file)
    for number, row in enumerate(_dicts(file), 2):
        if number == 2:
            _check(file, row, columns)
        where = f"{file.name} line {number}"
        if row.get(None):       # type: ignore[call-overload]
            yield where, "it has more cells than the header has columns"
            continue
        if row.get("image") in shared:
            row["image"] = shared[row["image"]]
        yield where, row


def _dicts(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(newline="", encoding="utf-8-sig") as lines:
        yield from csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",")


def _shared_pictures(file: Path) -> dict[str, str]:
    """index -> base64 of the rows whose picture others name by index. Only those are held."""
    named = {row["image"] for row in _dicts(file) if row.get("image") and len(row["image"]) < _SHORT}
    if not named:
        return {}
    return {row["index"]: row["image"] for row in _dicts(file)
            if row.get("index") in named and len(row.get("image") or "") >= _SHORT}


def _json_lines(file: Path, columns: Sequence[str]) -> Iterator[_Pair]:
    with file.open(encoding="utf-8") as lines:
        for number, text in enumerate(lines, 1):
            if text.strip():
                where = f"{file.name} line {number}"
                try:
                    yield where, _object(json.loads(text), columns)
                except json.JSONDecodeError as error:
                    yield where, f"it is no JSON ({error.msg})"


def _json(file: Path, columns: Sequence[str]) -> Iterator[_Pair]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is no JSON (line {error.lineno}: {error.msg}); download it again") from None
    if isinstance(entries, Mapping):    # {"questions": [...]}
        entries = next((value for value in entries.values() if isinstance(value, list)), [])
    for number, entry in enumerate(entries):
        yield f"{file.name} entry {number}", _object(entry, columns)


def _object(entry: Any, columns: Sequence[str]) -> Mapping[str, Any] | str:
    if not isinstance(entry, Mapping):
        return "it is no JSON object"
    missing = _missing(entry, columns)
    return f"it has no {missing[0]!r}" if missing else entry


def _parquet(file: Path, columns: Sequence[str]) -> Iterator[_Pair]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"reading {file} needs pyarrow (pip install pyarrow); or use the benchmark's JSON") from None
    try:
        table = parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} is no parquet file ({error}); download it again") from None
    with table:
        _check(file, {name: None for name in table.schema_arrow.names}, columns)
        number = 0
        for batch in table.iter_batches(batch_size=64):
            for values in batch.to_pylist():
                yield f"{file.name} row {number}", values
                number += 1


def _check(file: Path, names: Mapping[str, Any], columns: Sequence[str]) -> None:
    if missing := _missing(names, columns):
        held = ", ".join(str(name) for name in names if name)
        raise UserError(f"{file} has no column {missing[0]!r} (it has {held}); it is not this benchmark's file")


def _missing(names: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    return [name for name in columns if not any(one in names for one in name.split(" or "))]


_READERS = {".tsv": _table, ".csv": _table, ".jsonl": _json_lines, ".json": _json, ".parquet": _parquet}
