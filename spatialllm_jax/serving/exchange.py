"""One request and its answer: read within bounds, answered whole or in pieces, given up when the client has gone."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from absl import logging
from starlette.types import Message, Receive, Scope, Send

from spatialllm_jax.inference.live import Update
from spatialllm_jax.serving import replies
from spatialllm_jax.serving.errors import RequestError
from spatialllm_jax.serving.service import Service
from spatialllm_jax.serving.worker import Job

_GONE = 499         # the client went away, as nginx has it; seen in logs and metrics alone
_LAST_WORDS = 1.0   # seconds to tell a slow client that it was too slow
T = TypeVar("T")


class Gone(Exception):
    """The client has closed the connection."""


class Exchange:
    """An address that takes a body of JSON. Every way out gives back what the request held."""

    def __init__(self, service: Service):
        """For requests to `service`."""
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI)."""
        began, status, begun = time.monotonic(), 500, False

        async def sent(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
            await send(message)

        error = None
        try:
            with self.service.place():
                async with asyncio.timeout(self.service.limits.seconds):
                    await self.answer(scope, receive, sent, began)
        except RequestError as found:
            error = found
        except TimeoutError:
            error = RequestError(504, f"the request took longer than {self.service.limits.seconds:g} s", "timeout")
        except Gone:
            status = _GONE
        except asyncio.CancelledError:
            status = _GONE
            raise
        except Exception:
            logging.exception("%s failed", scope["path"])
            error = RequestError(500, "the server failed on this request", "internal_error")
        finally:
            if error is not None:
                status = error.status
            self.service.metrics.finished(status, time.monotonic() - began)
        if error is not None:
            await _tell(error, begun, scope, receive, send)

    async def answer(self, scope: Scope, receive: Receive, send: Send, began: float) -> None:
        """Reads the request and sends the answer."""
        raise NotImplementedError

    async def read(self, scope: Scope, receive: Receive, reader: Callable[[bytes], T]) -> T:
        """The request's body through `reader`, off the event loop.

        Raises:
            RequestError: too large, or not said to be JSON.
        """
        headers = {name.lower(): value for name, value in scope["headers"]}
        if not headers.get(b"content-type", b"").lower().startswith(b"application/json"):
            raise RequestError(415, "send JSON, with Content-Type: application/json", "unsupported_media_type")
        most = self.service.limits.body
        too_large = RequestError(413, f"the body is larger than {most:,} bytes", "body_too_large")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise too_large
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            body += message.get("body", b"")
            if len(body) > most:
                raise too_large
            more = message.get("more_body", False)
        return await asyncio.get_running_loop().run_in_executor(self.service.readers, reader, bytes(body))


class Marked(Exchange):
    """/v1/marked: a picture and regions -> the picture as the model sees it, a PNG."""

    async def answer(self, scope: Scope, receive: Receive, send: Send, began: float) -> None:
        """Draws."""
        await _whole(send, await self.read(scope, receive, self.service.read_marked), b"image/png")


class Chat(Exchange):
    """/v1/chat/completions."""

    async def answer(self, scope: Scope, receive: Receive, send: Send, began: float) -> None:
        """Has the engine answer, and passes on what it says."""
        asked, ready = await self.read(scope, receive, self.service.read_chat)
        reply = replies.Reply(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), self.service.name,
                              ready.request.length)
        job, finished = Job(ready), False
        away = asyncio.ensure_future(_away(receive))
        self.service.worker.submit(job)
        try:
            text, tokens, finish, more, begun = "", 0, "", {}, False
            while not finish:
                item = await _unless(away, job)
                if isinstance(item, Update):
                    piece, tokens, finish = item.text, item.tokens, item.finish
                else:
                    piece, more["options"] = replies.scored(asked.prompt.options, item)
                    finish = "stop"
                finished = bool(finish)
                if not begun:
                    begun = True
                    self.service.metrics.started(time.monotonic() - began)
                    if asked.stream:
                        await _start(send, (b"content-type", b"text/event-stream; charset=utf-8"),
                                     (b"cache-control", b"no-cache"))
                        await _more(send, reply.opening())
                text += piece
                if asked.stream and piece:
                    await _more(send, reply.piece(piece))
            self.service.metrics.tokens(reply.prompt_tokens, tokens)
            if asked.stream:
                await _more(send, reply.closing(finish, tokens, asked.usage, **more), last=True)
            else:
                await _whole(send, _json(reply.whole(text, finish, tokens, **more)))
        finally:
            away.cancel()
            if not finished:
                self.service.worker.cancel(job)


async def _away(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless(away: asyncio.Future[None], job: Job) -> Update | np.ndarray:
    """The next of a job's updates. Raises Gone when the client goes first, RequestError when there will be none."""
    if job.updates.empty():
        update = asyncio.ensure_future(job.updates.get())
        both: set[asyncio.Future[Any]] = {away, update}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not update.done():
                raise Gone
            item = update.result()
        finally:
            update.cancel()
    elif away.done():
        raise Gone
    else:
        item = job.updates.get_nowait()
    if isinstance(item, RequestError):
        raise item
    return item


async def _tell(error: RequestError, begun: bool, scope: Scope, receive: Receive, send: Send) -> None:
    """Sends an error: as the answer, or as the last of its events where it has begun."""
    try:
        async with asyncio.timeout(_LAST_WORDS):
            if begun:
                await _more(send, replies.event(error.body()), last=True)
            else:
                await replies.failure(error)(scope, receive, send)
    except TimeoutError:
        pass        # it does not even read this


async def _start(send: Send, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _more(send: Send, body: bytes, last: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": not last})


async def _whole(send: Send, body: bytes, kind: bytes = b"application/json") -> None:
    await _start(send, (b"content-type", kind), (b"content-length", str(len(body)).encode()))
    await _more(send, body, last=True)


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()
