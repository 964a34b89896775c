"""The loop of one stage: batches in, steps, checkpoints, metrics; resumes exactly where it stopped."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from spatialllm_jax.data.batch import Batch
from spatialllm_jax.errors import Interrupted, UserError
from spatialllm_jax.parallel.mesh import shard_batch
from spatialllm_jax.training import metrics as metrics_lib
from spatialllm_jax.training.checkpoints import Checkpoints
from spatialllm_jax.training.config import StageConfig
from spatialllm_jax.training.step import TrainState


def to_device(arrays: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> Batch:
    """Host rows of this process -> a global `Batch`, rows split over the data axes of the mesh."""
    return Batch(**shard_batch(arrays, mesh))


class _Terminator:
    """Remembers SIGTERM or Ctrl-C, so that the loop can save and leave between two steps. A second Ctrl-C
    ends it at once."""

    def __enter__(self) -> _Terminator:
        self.asked = 0
        self._before: dict[int, Any] = {}
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        except ValueError:  # not the main thread: signals are somebody else's business
            pass
        return self

    def _ask(self, number: int, _: Any) -> None:
        if number == self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def run_stage(stage: StageConfig, state: TrainState, step_fn: Any, stream: Iterator[dict[str, np.ndarray]],
              mesh: jax.sharding.Mesh, folder: Path, *, show_progress: bool = True) -> TrainState:
    """Runs a stage to its last step.

    Args:
        state: at step 0; replaced by the last checkpoint in `folder` when there is one.
        step_fn: jitted `(state, batch) -> (state, metrics)` that donates its state.
        stream: Grain iterator of host batches; its position is part of the checkpoints.

    Raises:
        UserError: when more than `stage.max_skipped` steps were not finite.
        Interrupted: after SIGTERM or Ctrl-C, once everything is saved.
    """
    checkpoints = Checkpoints(folder / "checkpoints", stage.save_every)
    if checkpoints.latest is not None:
        state = checkpoints.restore(checkpoints.latest, state, stream)
        logging.info("stage %s resumes at step %d", stage.name, int(state.step))
    step = int(state.step)
    log = metrics_lib.MetricsLog(folder, step)
    names = ["patches"] if stage.objective == "patch_words" else [*(source.name for source in stage.sources), "patches"]
    pending: list[Any] = []
    started, waited = time.monotonic(), 0.0
    try:
        with metrics_lib.progress(stage.steps, step, stage.name, show_progress) as bar, _Terminator() as stop:
            while step < stage.steps:
                began = time.monotonic()
                batch = to_device(next(stream), mesh)
                waited += time.monotonic() - began
                state, values = step_fn(state, batch)
                pending.append(values)
                step += 1
                bar.update()
                if step % stage.log_every == 0 or step == stage.steps:
                    row = metrics_lib.summarize(pending, names)
                    elapsed = time.monotonic() - started
                    row = {"step": step, **row, "seconds_per_step": elapsed / len(pending),
                           "data_wait": waited / max(elapsed, 1e-9)}
                    log.write(row)
                    bar.set_postfix(loss=f"{row['loss']:.3f}", acc=f"{row['accuracy']:.2f}", refresh=False)
                    if row["skipped"] > stage.max_skipped:
                        raise UserError(f"stage {stage.name!r}: {row['skipped']} steps were not finite by step {step}; "
                                        "lower its learning rate or look at its data")
                    pending, started, waited = [], time.monotonic(), 0.0
                checkpoints.maybe_save(step, state, stream, force=stop.asked > 0 or step == stage.steps)
                if stop.asked and step < stage.steps:
                    raise Interrupted(step, stop.asked)
    finally:
        checkpoints.close()
        log.close()
    return state
