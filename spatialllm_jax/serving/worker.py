"""The one thread that owns the engine: commands come in by a queue, updates go out to an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from spatialllm_jax.errors import UserError
from spatialllm_jax.inference.live import Live, Ready, Update
from spatialllm_jax.serving.errors import RequestError

STOPPED = "the engine has stopped; ask whoever runs the server to start it again"


class Job:
    """One request for an answer, as the event loop that made it sees it.

    Attributes:
        loop: that event loop.
        updates: pieces of the answer, or the log-likelihoods of the options, or why there will be none.
    """

    def __init__(self, ready: Ready):
        self.ready, self.loop = ready, asyncio.get_running_loop()
        self.updates: asyncio.Queue[Update | np.ndarray | RequestError] = asyncio.Queue()


class Worker:
    """Runs a `Live` on a thread of its own. The methods may be called from any other."""

    def __init__(self, live: Live):
        """A thread for `live`, not yet started."""
        self.live = live
        self.progress: Callable[[], Any] = lambda: None     # told of every program compiled before the first request
        self.failure: BaseException | None = None       # what ended the thread, other than `stop`
        self.warm = threading.Event()
        self._commands: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._jobs: set[Job] = set()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begins to compile; `warm` is set when that is done, or has failed."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Has a job answered."""
        self._commands.put(("add", job))

    def cancel(self, job: Job) -> None:
        """Frees what a job holds; nothing if it has ended."""
        self._commands.put(("cancel", job))

    def stop(self) -> None:
        """Ends the thread, whatever is under way, and waits for it."""
        self._commands.put(("stop", None))
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether jobs can be answered."""
        return self._thread.is_alive() and self.failure is None

    def _run(self) -> None:
        try:
            for _ in self.live.warm():
                self.progress()
            self.warm.set()
            self._serve()
        except BaseException as error:
            logging.exception("the engine has stopped")
            self.failure = error
        finally:
            self.warm.set()
            self._fail(STOPPED)

    def _serve(self) -> None:
        """Answers until told to stop."""
        scoring: list[Job] = []
        while True:
            idle = not self.live.busy and not scoring
            while idle or not self._commands.empty():
                command, job = self._commands.get()
                idle = False
                if command == "stop":
                    return
                if command == "cancel":
                    self._jobs.discard(job)
                    self.live.cancel(job)
                    scoring = [other for other in scoring if other is not job]
                else:
                    self._jobs.add(job)
                    if job.ready.prompt.options:
                        scoring.append(job)
                    else:
                        self.live.add(job, job.ready)
            try:
                if scoring:     # one at a time, so that answers under way do not wait long
                    self._tell([self._scored(scoring.pop(0))])
                for updates in self.live.step():
                    self._tell([(update.ticket, update) for update in updates])
                    self._jobs -= {update.ticket for update in updates if update.finish}
            except Exception:
                logging.exception("requests under way have failed")
                scoring = []
                self._fail("the engine failed on this request or one beside it; try again")
                self.live.reset()
                time.sleep(0.1)     # a fault that lasts must not fill the log

    def _scored(self, job: Job) -> tuple[Job, np.ndarray | RequestError]:
        self._jobs.discard(job)
        try:
            return job, self.live.score(job.ready)
        except UserError as error:
            return job, RequestError(400, str(error), "invalid_value", "options")

    def _fail(self, message: str) -> None:
        failed, self._jobs = self._jobs, set()
        self._tell([(job, RequestError(500, message, "engine_failure")) for job in failed])

    def _tell(self, items: list[tuple[Job, Any]]) -> None:
        """Hands items over to their event loops, all in one call."""
        def put(items: list[tuple[Job, Any]]) -> None:
            for job, item in items:
                job.updates.put_nowait(item)

        for loop in {job.loop for job, _ in items}:
            with contextlib.suppress(RuntimeError):     # a loop that has ended
                loop.call_soon_threadsafe(put, [(job, item) for job, item in items if job.loop is loop])
