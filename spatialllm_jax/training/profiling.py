"""Traces of a few steps, for Perfetto and TensorBoard; see docs/profiling.md."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging


@contextlib.contextmanager
def trace(folder: str | Path) -> Iterator[None]:
    """Records all that happens on host and devices.

    Writes `FOLDER/plugins/profile/TIME/`, which TensorBoard's profiler reads, with `perfetto_trace.json.gz` in it for
    ui.perfetto.dev.
    """
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
        yield


@dataclasses.dataclass
class StepTrace:
    """Records `steps` steps of a loop, after `skip` that compile and warm up.

    Attributes:
        folder: where the trace goes; empty for none.
    """

    folder: str = ""
    skip: int = 2
    steps: int = 3
    _seen: int = 0
    _open: contextlib.ExitStack | None = None

    def step(self, number: int) -> contextlib.AbstractContextManager[Any]:
        """Goes around step `number` (from 1), which has its name in the trace."""
        if not self.folder:
            return contextlib.nullcontext()
        self._seen += 1
        if self._seen == self.skip + 1:
            logging.info("profiling steps %d to %d into %s", number, number + self.steps - 1, self.folder)
            self._open = contextlib.ExitStack()
            self._open.enter_context(trace(self.folder))
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def done(self, result: Any) -> None:
        """After every step: ends the trace behind the last one, once its `result` is there."""
        if self._open is not None and self._seen >= self.skip + self.steps:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends the trace, whatever it holds; once a trace has ended there is no other."""
        if self._open is not None:
            self._open.close()
            self._open, self.folder = None, ""
            logging.info("the trace is written; docs/profiling.md says how to read it")
        elif self.folder and self._seen:
            logging.warning("--profile: a stage ended after %d steps, before any was traced; the next is tried",
                            self._seen)
        self._seen = 0
