"""Safetensors by slices, against the safetensors library; and what a damaged file says."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from spatialllm_jax.errors import UserError
from spatialllm_jax.models.tensor_file import DTYPES, TensorFiles, TensorWriter

RNG = np.random.default_rng(0)
TENSORS = {
    "a": RNG.normal(size=(3, 4, 5)).astype(np.float32), "b": RNG.normal(size=(7,)).astype(ml_dtypes.bfloat16),
    "scalar": np.array(3.5, np.float16), "empty": np.zeros((0, 4), np.int64), "flag": np.array([True, False, True])}


def test_reads_what_the_library_writes(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    files = TensorFiles(tmp_path)
    assert set(files) == set(TENSORS)
    for name, value in TENSORS.items():
        assert files[name].dtype == value.dtype
        np.testing.assert_array_equal(files[name], value)
    files.release("a")
    np.testing.assert_array_equal(files["a"], TENSORS["a"])


def test_the_library_reads_what_is_written_in_pieces(tmp_path):
    file = tmp_path / "x.safetensors"
    with TensorWriter(file, {name: (v.shape, v.dtype) for name, v in TENSORS.items()}, {"format": "pt"}) as writer:
        writer.write("a", TENSORS["a"][2], (2,))
        writer.write("a", TENSORS["a"][0, 1:], (0, 1))
        writer.write("a", TENSORS["a"][1], (1,))
        writer.write("a", TENSORS["a"][0, 0], (0,))
        for name in ("b", "scalar", "empty", "flag"):
            writer.write(name, TENSORS[name])
    with safe_open(file, "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
    for name, value in load_file(file).items():
        np.testing.assert_array_equal(value, TENSORS[name])
        assert value.dtype == TENSORS[name].dtype
    for entry in writer.entries.values():
        assert entry.begin % entry.dtype.itemsize == 0


def test_every_type_of_the_format_comes_through(tmp_path):
    values = {name: np.arange(6).astype(dtype) for name, dtype in DTYPES.items()}
    with TensorWriter(tmp_path / "x.safetensors", {n: (v.shape, v.dtype) for n, v in values.items()}) as writer:
        for name, value in values.items():
            writer.write(name, value)
    files = TensorFiles(tmp_path / "x.safetensors")
    for name, value in values.items():
        assert files[name].dtype == value.dtype and files[name].tobytes() == value.tobytes()


def test_wrong_pieces_are_refused_and_gaps_are_noticed(tmp_path):
    tensors = {"a": ((2, 3), np.float32)}
    with pytest.raises(RuntimeError, match="not written to their end: a"), \
            TensorWriter(tmp_path / "x.safetensors", tensors) as writer:
        with pytest.raises(TypeError, match="a is float32, not float64"):
            writer.write("a", np.zeros(3))
        with pytest.raises(ValueError, match="does not fit"):
            writer.write("a", np.zeros(6, np.float32), (1,))
        writer.write("a", np.zeros(3, np.float32), (1,))


def damaged(tmp_path, change):
    file = tmp_path / "x.safetensors"
    save_file({"a": TENSORS["a"]}, file)
    file.write_bytes(change(file.read_bytes()))
    return file


def rewritten(data, **fields):
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + length])
    header["a"].update(fields)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length:]


@pytest.mark.parametrize(("change", "words"), [
    (lambda data: data[:-10], "cut off"), (lambda data: data + b"more", "4 bytes behind"),
    (lambda data: b"", "no header"), (lambda data: b"not tensors at all", "no header"),
    (lambda data: data[:8] + b"x" + data[9:], "damaged"), (lambda data: rewritten(data, shape=[3, 4, 4]), "240 bytes"),
    (lambda data: rewritten(data, dtype="Q4"), "type Q4"), (lambda data: rewritten(data, data_offsets=None), "damaged"),
], ids=["cut", "longer", "empty", "text", "json", "shape", "type", "offsets"])
def test_damaged_files_are_named_with_the_reason(tmp_path, change, words):
    file = damaged(tmp_path, change)
    with pytest.raises(UserError, match=words) as error:
        TensorFiles(tmp_path)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
