"""Datasets on disk: round trips, TFDS's own reader, random access, bad folders, nothing half-written."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from spatialllm_jax.data import storage
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.types import Question, Region


def png(seed=0):
    import io

    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue(), pixels


def record(k):
    questions = (
        Question(f"q{k}/0", f"im{k}", "higher", "relation", "test", (("Which?", "the dog"), ("Sure?", "yes")),
                 (Region("0", (0.1, 0.2, 0.3, 0.4), "dog"), Region("1", (0.5, 0.25, 0.75, 1.0), "dég")), "mark",
                 ("the dog", "the car"), 0, {"height_first": 1.25, "height_second": -0.5}, 1.75),
        Question(f"q{k}/1", f"im{k}", "caption", "general", "test", (("", "a dog"),)),
    )  # fmt: skip
    return ImageRecord(f"im{k}", png(k)[0], 8, 6, questions, '{"camera":{}}')


@pytest.fixture
def dataset(tmp_path):
    card = {"settings": {"seed": 3}}
    splits = {"train": [record(k) for k in range(7)], "test": [record(9)]}
    storage.write_dataset(tmp_path / "set", "tiny_set", splits, card)
    return tmp_path / "set"


def test_round_trip(dataset):
    source = storage.open_split(dataset, "train")
    assert len(source) == 7 and list(source) == [record(k) for k in range(7)]
    assert source[-1] == source[np.int64(6)] == record(6)
    with pytest.raises(IndexError):
        source[7]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3] == record(3) and storage.split_names(dataset) == ("train", "test")


def test_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_SHARD_BYTES", 2000)
    storage.write_dataset(tmp_path / "s", "sharded", {"train": (record(k) for k in range(11))})
    source = storage.open_split(tmp_path / "s", "train")
    assert len(source.paths) > 2 and list(source) == [record(k) for k in range(11)]


def test_tfds_reads_it(dataset):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(str(dataset)).as_data_source(split="train")
    assert len(source) == 7
    example = source[2]
    np.testing.assert_array_equal(example["image"], png(2)[1])
    assert example["image_id"] == b"im2" and example["width"] == 8
    assert json.loads(example["questions"])[0]["turns"][0] == ["Which?", "the dog"]


def test_same_records_same_bytes(tmp_path):
    for name in ("a", "b"):
        storage.write_dataset(tmp_path / name, "same", {"train": [record(k) for k in range(5)]})
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert "CARD.md" in files and "card.json" in files and len(files) == 5
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_card(dataset):
    card = json.loads((dataset / "card.json").read_text())
    assert card["splits"]["train"]["types"] == {"caption": 7, "higher": 7}
    assert card["splits"]["train"]["answers"]["higher"] == {"first": 7}
    assert "| higher | 7 | first 7 |" in (dataset / "CARD.md").read_text()


def test_nothing_half_written(tmp_path):
    def failing():
        yield record(0)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        storage.write_dataset(tmp_path / "x", "x", {"train": failing()})
    assert list(tmp_path.iterdir()) == []
    stale = tmp_path / ".x.partial-dead"  # what a killed run leaves behind
    stale.mkdir()
    storage.write_dataset(tmp_path / "x", "x", {"train": [record(0)]})
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    with pytest.raises(UserError, match="exists already"):
        storage.write_dataset(tmp_path / "x", "x", {"train": [record(0)]})
    with pytest.raises(UserError, match="came out empty"):
        storage.write_dataset(tmp_path / "x", "x", {"train": []}, overwrite=True)
    assert len(storage.open_split(tmp_path / "x", "train")) == 1  # the old one is still there


def test_bad_folders(dataset, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        storage.open_split(tmp_path / "none", "train")
    with pytest.raises(UserError, match="is not a dataset"):
        storage.open_split(tmp_path, "train")
    with pytest.raises(UserError, match="no split 'val'; it has train, test"):
        storage.open_split(dataset, "val")
    shard = next(dataset.glob("*test.array_record*"))
    shard.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="is missing"):
        storage.open_split(dataset, "test")
    (dataset / "features.json").write_text("{}")
    with pytest.raises(UserError, match="another kind"):
        storage.open_split(dataset, "train")
    (dataset / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="is broken"):
        storage.open_split(dataset, "train")


READ_FIRST_IN_THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from spatialllm_jax.data.storage import open_split
source = open_split(sys.argv[1], sys.argv[2])
# All that a read needs is imported by now, in one thread: two threads importing TFDS at once lock up.
before = set(sys.modules)
with ThreadPoolExecutor(4) as pool:
    assert len(list(pool.map(source.__getitem__, range(len(source))))) == len(source)
late = sorted(name for name in set(sys.modules) - before if name.startswith(("tensorflow_datasets", "array_record")))
assert not late, late
"""


def test_threads_import_nothing(tiny_dataset):
    subprocess.run([sys.executable, "-c", READ_FIRST_IN_THREADS, tiny_dataset, "train"], check=True, timeout=120)
