"""The loop of one stage: batches in, steps, checkpoints, metrics; resumes exactly where it stopped."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from spatialllm_jax.data import pipeline
from spatialllm_jax.data.batch import Batch
from spatialllm_jax.errors import Interrupted, UserError
from spatialllm_jax.models.flops import StepFlops
from spatialllm_jax.parallel import hosts
from spatialllm_jax.parallel.mesh import shard_batch
from spatialllm_jax.training import metrics as metrics_lib
from spatialllm_jax.training import optimizer, profiling
from spatialllm_jax.training.checkpoints import Checkpoints, check_room
from spatialllm_jax.training.config import Pace
from spatialllm_jax.training.step import TrainState


def to_device(arrays: dict[str, np.ndarray], mesh: jax.sharding.Mesh, kind: Callable[..., Any] = Batch) -> Any:
    """Host rows of this process -> a global `Batch`, rows split over the data axes of the mesh."""
    return kind(**shard_batch({name: array for name, array in arrays.items() if name != pipeline.NAMES}, mesh))


@dataclasses.dataclass(frozen=True)
class Feed:
    """How a stream's batches are read.

    Attributes:
        names: of the rows of what a step returns under "sources".
        batch: what a step takes, made from a host batch's arrays by name.
        counted: whether the stream counts what it leaves out (`data.pipeline.counts`), for the metrics.
    """

    names: Sequence[str]
    batch: Callable[..., Any] = Batch
    counted: bool = True


class _Terminator:
    """Remembers SIGTERM or Ctrl-C, so that the loop can save and leave between two steps. A second Ctrl-C
    ends it at once."""

    def __enter__(self) -> _Terminator:
        self.asked = 0
        self._before: dict[int, Any] = {}
        # Several processes must stop at the same step: SIGTERM is then the coordinator's (`parallel.hosts`).
        numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else (signal.SIGINT,)
        try:
            for number in numbers:
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


@dataclasses.dataclass(frozen=True)
class Watch:
    """How a run is looked at.

    Attributes:
        progress: show a bar (on the first process only).
        trackers: where numbers go beside `metrics.jsonl`.
        run: name for trackers.
        profile: which steps are traced; those of the first stage that is trained.
    """

    progress: bool = True
    trackers: metrics_lib.Trackers = dataclasses.field(default_factory=metrics_lib.Trackers)
    run: str = ""
    profile: profiling.StepTrace = dataclasses.field(default_factory=profiling.StepTrace)


def run_stage(stage: Pace, state: TrainState, step_fn: Any, stream: Iterator[dict[str, np.ndarray]],
              mesh: jax.sharding.Mesh, folder: Path, *, feed: Feed, watch: Watch, models: int,
              flops: StepFlops | None = None) -> tuple[TrainState, TrainState | None]:
    """Runs a stage to its last step; returns the last state, and the best one when the stage keeps it.

    Args:
        state: at step 0; replaced by the last checkpoint in `folder` when there is one.
        step_fn: jitted `(state, batch) -> (state, metrics)` that donates its state.
        stream: iterator of host batches with Grain's `get_state` and `set_state`; its position is part of the
            checkpoints.
        models: bytes of the models that will be written when the stage has ended.
        flops: for the MFU, or None.

    Raises:
        UserError: when more than `stage.max_skipped` steps were not finite, or the disk is too small.
        Interrupted: after SIGTERM or Ctrl-C, once everything is saved.
    """
    check_room(folder, state, stage.keep_last + stage.keep_best, models)
    checkpoints = Checkpoints(folder / "checkpoints", stage.save_every, stage.keep_last, stage.keep_best)
    if checkpoints.latest is not None:
        state = checkpoints.restore(checkpoints.latest, state, stream)
        logging.info("stage %s resumes at step %d", stage.name, int(state.step))
    step = int(state.step)
    log = metrics_lib.MetricsLog(folder, step, hosts.is_first(), watch.trackers, f"{watch.run}/{stage.name}")
    rate = optimizer.schedule(stage.optimizer, stage.steps)
    pending: list[Any] = []
    rows: list[np.ndarray] = []     # names of the pending steps' rows
    suspect = ""                    # the rows of the last step that was not finite
    loss: float | None = None
    started, waited = time.monotonic(), 0.0
    try:
        shown = watch.progress and hosts.is_first()
        with metrics_lib.progress(stage.steps, step, stage.name, shown) as bar, _Terminator() as stop:
            while step < stage.steps:
                if len(pending) > 1:    # one step runs, one is queued: further ahead, the wait would be hidden
                    jax.block_until_ready(pending[-2]["loss"])
                with watch.profile.step(step + 1):
                    began = time.monotonic()
                    with jax.profiler.TraceAnnotation("next batch"):
                        arrays = next(stream)
                    waited += time.monotonic() - began
                    state, values = step_fn(state, to_device(arrays, mesh, feed.batch))
                watch.profile.done(values)
                pending.append(values)
                rows.append(arrays.get(pipeline.NAMES, np.array([])))
                step += 1
                bar.update()
                if step % stage.log_every == 0 or step == stage.steps:
                    fetched = jax.device_get(pending)
                    row = metrics_lib.summarize(fetched, feed.names)
                    for k in metrics_lib.not_finite(fetched):
                        suspect = "; ".join(rows[k].tolist())
                        logging.warning("stage %s: step %d was not finite and changed nothing; its rows: %s",
                                        stage.name, step - len(pending) + 1 + k, suspect)
                    elapsed = max(time.monotonic() - started, 1e-9)
                    loss = row["loss"]
                    left_out = metrics_lib.dropped(stream) if feed.counted else {}
                    log.write({"step": step, **row, "learning_rate": float(rate(step - 1)),
                               "seconds_per_step": elapsed / len(pending), "data_wait": waited / elapsed,
                               **metrics_lib.speed(fetched, elapsed, flops), **left_out})
                    bar.set_postfix(loss=f"{loss:.3f}", acc=f"{row['accuracy']:.2f}", refresh=False)
                    if row["skipped"] > stage.max_skipped:
                        raise UserError(f"stage {stage.name!r}: {row['skipped']} steps were not finite by step {step}; "
                                        f"lower its learning rate or look at its data, last at {suspect}")
                    pending, rows, started, waited = [], [], time.monotonic(), 0.0
                asked = stop.asked or (signal.SIGTERM if hosts.asked_to_stop(step) else 0)
                checkpoints.maybe_save(step, state, stream, loss, force=asked > 0 or step == stage.steps)
                if asked and step < stage.steps:
                    raise Interrupted(step, asked)
        best = checkpoints.best if stage.keep_best else None
        return state, checkpoints.restore(best, state) if best is not None else None
    finally:
        watch.profile.close()
        checkpoints.close()
        log.close()
        if hasattr(stream, "close"):
            stream.close()
