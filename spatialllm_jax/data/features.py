"""Features of frozen vision encoders, computed once and kept on disk.

Where the encoders do not train (stages 1 and 2 of the paper), their outputs for an image never change. A
store holds them as one memory-mapped array, so that an epoch costs no encoder work. The results are the
same as with images, up to the storage type (float16 by default).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from spatialllm_jax.errors import UserError

_META, _ARRAY = "features.json", "features.npy"


@dataclasses.dataclass(frozen=True)
class FeatureStore:
    """Random access to stored features by image id. Opens its file lazily, so that it can be pickled.

    Attributes:
        folder: holds `features.npy` [M, P, C] and `features.json`.
        key: what the features depend on (weights, resolution); compared on opening.
    """

    folder: str
    key: str

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        meta = _read_meta(self.folder)
        if meta["key"] != self.key:
            raise UserError(f"the features in {self.folder} come from other weights or sizes; delete the folder")
        return {name: row for row, name in enumerate(meta["ids"])}

    @functools.cached_property
    def _array(self) -> np.ndarray:
        return np.load(Path(self.folder) / _ARRAY, mmap_mode="r")

    def __reduce__(self):
        return FeatureStore, (self.folder, self.key)

    @property
    def shape(self) -> tuple[int, int]:
        """(P, C) of one image."""
        return self._array.shape[1], self._array.shape[2]

    def __getitem__(self, image_id: str) -> Float[np.ndarray, "P C"]:
        if image_id not in self._rows:
            raise UserError(f"no features for image {image_id!r} in {self.folder}; delete the folder to rebuild it")
        return self._array[self._rows[image_id]]


def _read_meta(folder: str) -> dict:
    try:
        return json.loads((Path(folder) / _META).read_text())
    except (OSError, json.JSONDecodeError):
        raise UserError(f"no feature store at {folder}") from None


def build(folder: str | Path, key: str, ids: Sequence[str],
          load: Callable[[int], UInt8[np.ndarray, "H W 3"]],
          encode: Callable[[UInt8[np.ndarray, "M H W 3"]], Float[np.ndarray, "M P C"]], *,
          batch_size: int = 16, dtype: str = "float16", show_progress: bool = True) -> FeatureStore:
    """Encodes all images and writes a store; an existing one with the same key and ids is reused.

    Args:
        key: text that changes whenever the features would.
        load: index -> pixels.
        encode: a jitted function over a full batch; the last batch is padded with repeats.

    The store appears under `folder` only when complete.
    """
    folder = Path(folder)
    if (folder / _META).exists():
        meta = _read_meta(str(folder))
        if meta["key"] == key and meta["ids"] == list(ids):
            return FeatureStore(str(folder), key)
        shutil.rmtree(folder)
    # Two programs may want the same features at once: each writes its own, and the last one's stay.
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    array = None
    starts = range(0, len(ids), batch_size)
    for start in tqdm(starts, desc=f"features {folder.name}", disable=not show_progress, unit="batch"):
        rows = range(start, min(start + batch_size, len(ids)))
        images = np.stack([load(row) for row in rows])
        if len(images) < batch_size:
            images = np.concatenate([images, np.repeat(images[-1:], batch_size - len(images), axis=0)])
        features = np.asarray(encode(images))[:len(rows)]
        if not np.isfinite(features).all():
            raise UserError(f"the vision encoders gave non-finite features for {ids[start]!r}; check their weights")
        if array is None:
            array = np.lib.format.open_memmap(partial / _ARRAY, mode="w+", dtype=dtype,
                                              shape=(len(ids), *features.shape[1:]))
        array[start:start + len(rows)] = features
    if array is None:
        raise UserError(f"there are no images to encode for {folder}")
    array.flush()
    (partial / _META).write_text(json.dumps({"key": key, "ids": list(ids)}))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return FeatureStore(str(folder), key)
