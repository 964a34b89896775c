"""Image records on disk: TFDS datasets in ArrayRecord files, written and read without TensorFlow.

`write_dataset` makes a folder that `tfds.builder_from_directory(folder).as_data_source()` reads;
`open_split` reads the same files faster, as `ImageRecord`s. Questions and scene are JSON texts inside
the example: a record holds tens of questions of different shapes, and one JSON parse (about 0.1 ms) is
quicker than a nested sequence of features.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spatialllm_jax.data.card import CardCounter, write_card
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.types import Question, Region

VERSION = "1.0.0"
DESCRIPTION = "Images with 3D scenes and spatial questions."
_SHARD_BYTES = 256 * 2**20
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Question) if f.default is not dataclasses.MISSING}


def question_to_dict(question: Question) -> dict[str, Any]:
    """A JSON-ready dict; fields at their defaults and the image's id are left out."""
    result: dict[str, Any] = {
        "id": question.id,
        "type": question.type,
        "group": question.group,
        "source": question.source,
        "turns": question.turns,
    }
    if question.regions:
        result["regions"] = [[r.label, r.bbox, r.phrase] for r in question.regions]
    for key in ("region_style", "options", "answer_index", "margin", "form", "claim"):
        value = getattr(question, key)
        if value != _DEFAULTS[key]:
            result[key] = value
    if question.quantities:
        result["quantities"] = {k: round(float(v), 5) for k, v in question.quantities.items()}
    return result


def question_from_dict(data: Mapping[str, Any], image: str) -> Question:
    """The inverse of `question_to_dict`. Raises UserError when a key is missing."""
    try:
        return Question(
            id=data["id"],
            image=image,
            type=data["type"],
            group=data["group"],
            source=data["source"],
            turns=tuple((user, assistant) for user, assistant in data["turns"]),
            regions=tuple(
                Region(label, (box[0], box[1], box[2], box[3]), phrase)
                for label, box, phrase in data.get("regions", ())
            ),
            region_style=data.get("region_style", "name"),
            options=tuple(data.get("options", ())),
            answer_index=data.get("answer_index"),
            quantities=data.get("quantities", {}),
            margin=data.get("margin"),
            form=data.get("form", "which"),
            claim=data.get("claim", ""),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"a question of image {image!r} is broken ({error!r}); write the dataset again") from error


def encode_record(record: ImageRecord) -> bytes:
    """A record as a serialized tf.train.Example."""
    example = _example_pb2().Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(record.image)
    feature["image_id"].bytes_list.value.append(record.image_id.encode())
    feature["width"].int64_list.value.append(record.width)
    feature["height"].int64_list.value.append(record.height)
    questions = json.dumps([question_to_dict(q) for q in record.questions], separators=(",", ":"))
    feature["questions"].bytes_list.value.append(questions.encode())
    feature["scene"].bytes_list.value.append(record.scene.encode())
    return example.SerializeToString(deterministic=True)


def decode_record(data: bytes) -> ImageRecord:
    """The inverse of `encode_record`."""
    feature = _example_pb2().Example.FromString(data).features.feature
    image_id = feature["image_id"].bytes_list.value[0].decode()
    questions = json.loads(feature["questions"].bytes_list.value[0])
    return ImageRecord(
        image_id=image_id,
        image=feature["image"].bytes_list.value[0],
        width=feature["width"].int64_list.value[0],
        height=feature["height"].int64_list.value[0],
        questions=tuple(question_from_dict(q, image_id) for q in questions),
        scene=feature["scene"].bytes_list.value[0].decode(),
    )


def write_dataset(
    folder: str | os.PathLike[str],
    name: str,
    splits: Mapping[str, Iterable[ImageRecord]],
    card: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    findings: Callable[[Path], Mapping[str, Any]] | None = None,
    extras: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Writes a TFDS dataset and its card; the folder appears only when everything is written.

    Args:
        folder: must not exist, unless `overwrite`.
        name: TFDS name, of lower-case letters, digits and underscores.
        splits: records per split, streamed.
        card: settings for the dataset card (sources, seed, licences ...); counts are added.
        findings: called with the still hidden folder when all records are written; returns what only then is
            known, for the card.
        extras: called with the still hidden folder, to add other files to it.

    Returns:
        The card. Raises UserError when the folder exists.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise UserError(f"{folder} exists already; choose another folder or pass --overwrite")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.partial-*"):
        shutil.rmtree(stale, ignore_errors=True)
    partial = folder.parent / f".{folder.name}.partial-{uuid.uuid4().hex[:8]}"
    partial.mkdir()
    try:
        counter = CardCounter()
        lengths: dict[str, list[tuple[int, int]]] = {}
        for split, records in splits.items():
            lengths[split] = _write_split(partial, name, split, records, counter)
        _write_metadata(partial, name, lengths)
        found = findings(partial) if findings is not None else {}
        result = {"name": name, **(card or {}), **found, "splits": counter.result()}
        write_card(partial, result)
        if extras is not None:
            extras(partial)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return result


def _write_split(
    folder: Path, name: str, split: str, records: Iterable[ImageRecord], counter: CardCounter
) -> list[tuple[int, int]]:
    """Writes the shards of a split; returns (records, bytes) of each."""
    from array_record.python.array_record_module import ArrayRecordWriter

    shards: list[tuple[int, int]] = []
    paths: list[Path] = []
    iterator: Iterator[ImageRecord] = iter(records)
    first = next(iterator, None)
    while first is not None:
        path = folder / f"shard-{split}-{len(paths)}"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        count = size = 0
        following: ImageRecord | None = None
        for record in itertools.chain([first], iterator):
            if size >= _SHARD_BYTES:
                following = record
                break
            counter.add(split, record)
            data = encode_record(record)
            writer.write(data)
            count, size = count + 1, size + len(data)
        writer.close()
        paths.append(path)
        shards.append((count, size))
        first = following
    if not shards:
        raise UserError(f"split {split!r} of dataset {name!r} came out empty; give it scenes, or loosen its margins")
    for k, path in enumerate(paths):
        path.rename(folder / _shard_name(name, split, k, len(paths)))
    return shards


def _shard_name(name: str, split: str, shard: int, shards: int) -> str:
    return f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"


def tfds_features() -> Any:
    """The `tfds.features.FeaturesDict` of an image record."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image_id": tfds.features.Text(),
            "width": tfds.features.Scalar(dtype=np.int64),
            "height": tfds.features.Scalar(dtype=np.int64),
            "questions": tfds.features.Text(doc="JSON list of questions"),
            "scene": tfds.features.Text(doc="JSON of the camera and the 3D boxes"),
        }
    )


def _write_metadata(folder: Path, name: str, lengths: Mapping[str, list[tuple[int, int]]]) -> None:
    """TFDS's own dataset_info.json and features.json."""
    import tensorflow_datasets as tfds

    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name=name, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=""
        ),
        description=DESCRIPTION,
        features=tfds_features(),
    )
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(
        dataset_name=name, data_dir=str(folder), filetype_suffix="array_record"
    )
    info.set_splits(
        tfds.core.SplitDict(
            [
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[count for count, _ in shards],
                    num_bytes=sum(size for _, size in shards),
                    filename_template=template,
                )
                for split, shards in lengths.items()
            ]
        )
    )
    info.write_to_directory(str(folder))


@dataclasses.dataclass
class RecordSource:
    """Random access to the records of a split: `len(source)`, `source[i] -> ImageRecord`.

    Files are opened on first use and dropped when pickled, so that Grain's workers open their own.
    """

    paths: tuple[str, ...]
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        self._ends = list(itertools.accumulate(self.lengths))
        self._readers: dict[int, Any] = {}
        # Imported here, in one thread: Grain reads in several, and TFDS's modules, which import each other lazily,
        # lock up when two threads import them first.
        self._parse, self._open = _example_pb2().Example.FromString, _reader_class()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> ImageRecord:
        return decode_record(self._read(index))

    def image_ids(self) -> list[str]:
        """All ids in order, without decoding the rest."""
        return [self._parse(self._read(index)).features.feature["image_id"].bytes_list.value[0].decode()
                for index in range(len(self))]

    def _read(self, index: int) -> bytes:
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        shard = bisect.bisect_right(self._ends, index)
        offset = index - (self._ends[shard - 1] if shard else 0)
        return self._reader(shard).read([offset])[0]

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[i] for i in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "lengths": self.lengths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.paths, self.lengths = state["paths"], state["lengths"]
        self.__post_init__()

    def __repr__(self) -> str:
        return f"RecordSource({len(self)} records, {self.paths[0] if self.paths else 'empty'})"

    def _reader(self, shard: int) -> Any:
        if shard not in self._readers:
            path = self.paths[shard]
            reader = self._open(path, "readahead_buffer_size:0")
            if reader.num_records() != self.lengths[shard]:
                raise UserError(
                    f"{path} holds {reader.num_records()} records, its dataset_info.json says "
                    f"{self.lengths[shard]}; write the dataset again"
                )
            self._readers[shard] = reader
        return self._readers[shard]


def split_names(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """The splits of a dataset folder. Raises UserError when it is not one."""
    return tuple(split["name"] for split in _info(Path(folder))["splits"])


def open_split(folder: str | os.PathLike[str], split: str) -> RecordSource:
    """Opens a split for random access.

    Raises:
        UserError: no such folder, not a dataset of this program, no such split, or a missing shard.
    """
    folder = Path(folder)
    info = _info(folder)
    names = [entry["name"] for entry in info["splits"]]
    if split not in names:
        raise UserError(f"dataset {folder} has no split {split!r}; it has {', '.join(names)}")
    entry = info["splits"][names.index(split)]
    lengths = tuple(int(n) for n in entry["shardLengths"])
    paths = [folder / _shard_name(info["name"], split, k, len(lengths)) for k in range(len(lengths))]
    for path in paths:
        if not path.is_file():
            raise UserError(f"dataset file {path} is missing; write the dataset again")
    return RecordSource(tuple(str(p) for p in paths), lengths)


def _info(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"dataset folder {folder} does not exist; write one with python -m launch.generate")
    path = folder / "dataset_info.json"
    try:
        info: dict[str, Any] = json.loads(path.read_text())
        info["splits"], info["name"]
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a dataset (no dataset_info.json); name a folder that launch.generate wrote"
        ) from None
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is broken ({error!r}); write the dataset again") from error
    features = folder / "features.json"
    if not features.is_file() or "questions" not in features.read_text():
        raise UserError(
            f"{folder} is a TFDS dataset of another kind (no questions); name one that launch.generate wrote"
        )
    return info


def _example_pb2() -> Any:
    from tensorflow_datasets.proto import tf_example_generated_pb2

    return tf_example_generated_pb2


def _reader_class() -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader
