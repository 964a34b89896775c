"""The restricted unpickler: the same data as numpy's own reader, and nothing run."""

import os
import pickle
import zipfile

import numpy as np
import pytest

from spatialllm_jax.errors import UserError
from spatialllm_jax.sources.restricted_pickle import MAX_BYTES, loads, read_npz

VALUES = {
    "float": np.float64(1.5), "small": np.uint16(300), "flag": np.bool_(True), "word": np.str_("hi"),
    "empty": np.str_(""),
    "box": np.array([1.0, 2, 3, 4]), "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)), "none": np.array([]),
    "strided": np.arange(6)[::2], "big": np.arange(3, dtype=">i4"), "text": np.array(["a", "bcd"]),
    "objects": np.array([{"a": np.array([1, 2])}, None, "x"], object), "bytes": b"\xff\x00", "no bytes": b"",
    "tuple": (1, {2, 3}, frozenset({4}), 2 + 3j), "car": "car", "nested": [[1.0, None], {"k": True}],
}  # fmt: skip


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape
        for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
            same(x, y)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_come_back(protocol):
    same(loads(pickle.dumps(VALUES, protocol), "f"), VALUES)


def test_names_of_numpy_1(tmp_path):
    """Files written by numpy 1 name `numpy.core`, those by numpy 2 `numpy._core`."""
    new = pickle.dumps({"a": np.arange(3.0), "b": np.float32(2)}, 2)
    assert b"numpy._core.multiarray" in new
    same(loads(new.replace(b"numpy._core", b"numpy.core"), "f"), {"a": np.arange(3.0), "b": np.float32(2)})


def test_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, annotations=[VALUES, VALUES], plain=np.arange(4).reshape(2, 2))
    found = read_npz(path, "annotations")
    assert found.shape == (2,)
    same(found[1], VALUES)
    same(read_npz(path, "plain"), np.arange(4).reshape(2, 2))
    np.savez_compressed(path, annotations=np.array({"a": 1}, object))
    assert read_npz(path, "annotations") == {"a": 1}


class Runs:
    """Pickles as a call of os.system."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: [{"a": e}], lambda e: np.array([e, None], object)])
def test_nothing_is_run(tmp_path, wrap):
    """The file would leave a mark if its code ran; numpy's own reader shows that it can."""
    mark, path = tmp_path / "mark", tmp_path / "bad.npz"
    np.savez(path, annotations=np.array([wrap(Runs(f"touch {mark}"))], object))
    with pytest.raises(UserError, match=r"bad\.npz asks for posix\.system, which .* not run; do not use this file"):
        read_npz(path, "annotations")
    assert not mark.exists()
    np.load(path, allow_pickle=True)["annotations"]
    assert mark.exists()


def global_call(module, name, *pushed):
    """A pickle that calls module.name with the pushed values."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(pushed) + b"tR."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps(print), r"asks for builtins\.print"),
        (pickle.dumps(pickle.loads), r"asks for _pickle\.loads"),
        (global_call("numpy", "load", b"X\x01\x00\x00\x00a"), r"asks for numpy\.load"),
        (global_call("builtins", "getattr"), r"asks for builtins\.getattr"),
        (global_call("builtins", "eval"), r"asks for builtins\.eval"),
        (global_call("builtins", "bytes", b"J\xff\xff\xff\x7f"), "asks for bytes of a value"),
        (global_call("numpy", "ndarray", b"K\x63"), "not callable"),
        (global_call("_codecs", "encode", b"X\x01\x00\x00\x00a", b"X\x05\x00\x00\x00rot13"), "asks for the encoding"),
        (pickle.dumps(np.zeros(2, "i4,f4")), "asks for the dtype"),
        (pickle.dumps(np.datetime64("2020")), "asks for the dtype"),
        (pickle.dumps(np.ma.array([1])), r"asks for numpy\.ma"),
        (b"", "no readable pickle"),
        (b"nonsense", "no readable pickle"),
        (pickle.dumps(VALUES)[:-40], "no readable pickle"),
        (b"\x80\x02Pabc\n.", "asks for a persistent id"),
        (b"\x80\x02cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.", "asks for a change of what this reader admits"),
        (b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.", "no readable pickle"),
    ],
)
def test_refused(content, words):
    with pytest.raises(UserError, match=words):
        loads(content, "f.npz")


def test_values_that_contain_themselves_or_much():
    endless: list = []
    endless.append(endless)
    with pytest.raises(UserError, match="contains itself"):
        loads(pickle.dumps(endless), "f.npz")
    laughs: list = ["x"]
    for _ in range(60):
        laughs = [laughs] * 9
    assert len(loads(pickle.dumps(laughs), "f.npz")) == 9  # 9 to the 60th leaves, shared


def test_damaged_files(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(UserError, match=r"a\.npz is missing; fetch it"):
        read_npz(path, "annotations")
    path.write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"not a readable \.npz file"):
        read_npz(path, "annotations")
    np.savez_compressed(path, annotations=np.array([VALUES], object))
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes(20) + whole[220:])
    with pytest.raises(UserError, match=r"not a readable \.npz file|holds no readable pickle|is damaged"):
        read_npz(path, "annotations")
    path.write_bytes(whole)
    with pytest.raises(UserError, match="has no array 'poses'"):
        read_npz(path, "poses")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("annotations.npy", b"\x93NUMPY\x09\x00 what")
    with pytest.raises(UserError, match=r"array 'annotations' of .* is damaged"):
        read_npz(path, "annotations")


def test_bombs(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("annotations.npy", "w") as member:
        for _ in range(MAX_BYTES // 2**20 + 1):
            member.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(UserError, match="unfolds to more than"):
        read_npz(path, "annotations")


def test_shapes_that_do_not_fit():
    """A header that promises more items than the pickle holds."""
    content = pickle.dumps(np.arange(4.0), 2)
    forged = content.replace(b"K\x04\x85", b"K\x05\x85")
    assert forged != content
    with pytest.raises(UserError, match="no readable pickle"):
        loads(forged, "f.npz")
