"""A checkpoint from disk to disk: every layer is written into the stacked arrays as it is read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from convert.plan import Fill, State, blocks
from spatialllm_jax.models.tensor_file import TensorFiles, TensorWriter


def stream(state: State, fills: Sequence[Fill], file: Path, *, prefix: str = "", dtype: Any = None,
           threads: int = 2, show_progress: bool = False) -> int:
    """Writes the parameters of a plan into one safetensors file; returns their number.

    Memory: a tensor and a block of it per thread, whatever the size of the checkpoint.

    Args:
        prefix: put before every path, "llm/" say.
        dtype: type to store; None = as they come.

    Raises:
        UserError: a tensor holds values that are not finite.
    """
    written = {fill: np.dtype(fill.dtype if dtype is None else dtype) for fill in fills}
    jobs = [(fill, layer) for fill in fills for layer in range(len(fill.pieces))]
    if isinstance(state, TensorFiles):  # in the order of the file, so that the disk reads ahead
        places = state.entries
        jobs.sort(key=lambda job: (str(places[_name(job)].file), places[_name(job)].begin))

    with TensorWriter(file, {prefix + fill.target: (fill.shape, written[fill]) for fill in fills}) as writer, \
            tqdm(total=sum(int(np.prod(f.shape)) * f.dtype.itemsize for f in fills), desc="convert", unit="B",
                 unit_scale=True, disable=not show_progress) as bar:

        def copy(job: tuple[Fill, int]) -> int:
            fill, layer = job
            at = (layer,) if fill.stacked else ()
            view = fill.view(state, layer)
            for start, block in blocks(view, _name(job)):
                writer.write(prefix + fill.target, block.astype(written[fill], copy=False),
                             (*at, start) if view.ndim else at)
            if isinstance(state, TensorFiles):
                state.release(_name(job))
            return view.nbytes

        with ThreadPoolExecutor(threads) as pool:
            try:
                for done in pool.map(copy, jobs):
                    bar.update(done)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return sum(int(np.prod(fill.shape)) for fill in fills)


def _name(job: tuple[Fill, int]) -> str:
    return job[0].pieces[job[1]].tensor
