"""What a server knows: its model, its limits, who is served, whether it is about to stop."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

from spatialllm_jax.data.images import ImageError
from spatialllm_jax.errors import UserError
from spatialllm_jax.inference.live import Live, Ready
from spatialllm_jax.inference.prompts import Prompt
from spatialllm_jax.serving import pictures, protocol
from spatialllm_jax.serving.errors import RequestError
from spatialllm_jax.serving.limits import Limits
from spatialllm_jax.serving.metrics import Metrics
from spatialllm_jax.serving.worker import STOPPED, Worker

_RETRY_AFTER = 1        # seconds; the queue moves several times a second


@dataclasses.dataclass
class Service:
    """One model behind HTTP.

    Attributes:
        worker: the engine's thread.
        name: the model's.
        limits: of requests.
        key: that every request must carry; "" for none.
        created: seconds since 1970.
        draining: no new requests are taken on.
        under_way: requests between their first byte and their answer's last.
    """

    worker: Worker
    name: str
    limits: Limits
    key: str = ""
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))
    draining: bool = False
    under_way: int = 0

    def __post_init__(self) -> None:
        self.metrics = Metrics()
        # Reading bodies and pictures: off the event loop, and no more at a time than there is use for.
        self.readers = concurrent.futures.ThreadPoolExecutor(4, thread_name_prefix="reader")
        tokenizer = self.live.engine.tokenizer.backend
        self._controls = tuple(sorted(token.content for token in tokenizer.get_added_tokens_decoder().values()
                                      if token.special))

    @property
    def live(self) -> Live:
        """The engine; only `Live.ready` and sizes are for other threads than the worker's."""
        return self.worker.live

    @property
    def most(self) -> int:
        """Requests at a time, those that wait included."""
        return self.live.shape.rows * self.live.shape.lanes + self.limits.queue

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place among the requests at a time.

        Raises:
            RequestError: there is none, or none any more.
        """
        if self.draining:
            raise RequestError(503, "the server is shutting down", "shutting_down", retry_after=_RETRY_AFTER)
        if not self.worker.alive:
            raise RequestError(503, STOPPED, "engine_failure")
        if self.under_way >= self.most:
            raise RequestError(429, f"the server is busy with {self.under_way} requests; try again in a moment",
                               "queue_full", retry_after=_RETRY_AFTER)
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    def read_chat(self, body: bytes) -> tuple[protocol.Asked, Ready]:
        """A body of /v1/chat/completions as arrays. Raises RequestError."""
        asked = protocol.chat(body, self.name, self.live.shape, self.limits, self._controls)
        try:
            return asked, self.live.ready(asked.prompt, asked.sampling)
        except ImageError:
            raise _broken("messages") from None
        except UserError as error:
            raise RequestError(400, f"messages: {error}", "context_length_exceeded", "messages") from None

    def read_marked(self, body: bytes) -> bytes:
        """A body of /v1/marked as the PNG that it asks for. Raises RequestError."""
        prompt: Prompt = protocol.marked(body, self.limits)
        try:
            return pictures.png(self.live.engine.pixels(prompt))
        except ImageError:
            raise _broken("image") from None

    def health(self) -> tuple[int, dict[str, Any]]:
        """(status, what there is to say)."""
        if not self.worker.alive:
            return 503, {"status": "the engine has stopped"}
        if self.draining:
            return 503, {"status": "shutting down"}
        return 200, {"status": "ok", "model": self.name}

    def gauges(self) -> dict[str, tuple[str, float]]:
        """What is so now, for `Metrics.text`."""
        shape = self.live.shape
        return {"requests_under_way": ("requests that are read, wait or are answered", self.under_way),
                "lanes": ("answers at a time", shape.rows * shape.lanes),
                "lanes_busy": ("answers that hold a lane", self.live.running),
                "answers_waiting": ("answers that wait for a lane", self.live.waiting)}


def _broken(param: str) -> RequestError:
    return RequestError(400, f"{param}: the picture cannot be decoded; it may be cut short", "invalid_value", param)
