"""Models behind an HTTP interface, asked like `inference.engine.Engine`: OpenAI's and Anthropic's message formats.

Every prompt gets a `Reply`, also one that failed: a timeout, a busy server or nonsense costs that prompt alone, after
retries, and says so. What would fail for all of them (a wrong key, no such model) is marked `fatal`: no more are asked,
and the caller ends the run once it has kept what was answered.
"""

from __future__ import annotations

import base64
import concurrent.futures
import dataclasses
import email.utils
import http.client
import io
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from tqdm import tqdm

from spatialllm_jax.data import images
from spatialllm_jax.errors import UserError
from spatialllm_jax.inference.prompts import Prompt, divided_at_places

FORMATS = {"openai": ("/chat/completions", "OPENAI_API_KEY"), "anthropic": ("/messages", "ANTHROPIC_API_KEY")}
_FATAL = {401: "the key is not accepted", 403: "the key may not do this", 404: "there is no such address or model"}
_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_LONGEST_WAIT = 60.0    # seconds between two attempts
_BLANK = 336            # pixels, what a blind baseline shows


class Reply(str):
    """An answer's text, with what it cost; "" and `failure` where there was none, `fatal` where none will come."""

    failure: str
    fatal: bool
    input_tokens: int
    output_tokens: int

    def __new__(cls, text: str = "", failure: str = "", tokens: tuple[int, int] = (0, 0), fatal: bool = False) -> Reply:
        """A string that remembers more."""
        reply = super().__new__(cls, text)
        reply.failure, reply.fatal, (reply.input_tokens, reply.output_tokens) = failure, fatal, tokens
        return reply


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
    """One endpoint.

    Attributes:
        url: base address ("https://api.openai.com/v1") or the whole one.
        model: name of the model there.
        format: "openai" or "anthropic".
        key_variable: environment variable that holds the key; "" takes the format's own.
        timeout: seconds per attempt.
        attempts: per prompt, the first included.
        per_minute: most requests a minute, 0 for no limit.
        workers: requests under way at once.
        longest_side: pictures are scaled down to so many pixels.
        parameters: set in every request; None leaves one out that is sent otherwise (models that refuse `temperature`).
    """

    url: str
    model: str
    format: str = "openai"
    key_variable: str = ""
    timeout: float = 120.0
    attempts: int = 6
    per_minute: float = 0.0
    workers: int = 4
    longest_side: int = 2048
    parameters: tuple[tuple[str, Any], ...] = ()


class Endpoint:
    """Answers prompts over HTTP. `generate` is that of `Engine`; there are no likelihoods to score options by."""

    def __init__(self, config: EndpointConfig, *, wait: Callable[[float], None] = time.sleep):
        """Raises UserError for an address or format that cannot be, or a key that would travel unencrypted."""
        if config.format not in FORMATS:
            raise UserError(f"--endpoint-format {config.format} is unknown; choose from {', '.join(FORMATS)}")
        tail, variable = FORMATS[config.format]
        parts = urllib.parse.urlsplit(config.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--endpoint {config.url} is no http(s) address, such as https://api.openai.com/v1")
        if parts.username or parts.password:
            raise UserError(f"--endpoint holds a password; put keys into the environment ({variable})")
        self.config, self._wait = config, wait
        self._variable = config.key_variable or variable
        self._key = os.environ.get(self._variable, "")
        if self._key and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise UserError(f"--endpoint {config.url} would send the key in {self._variable} unencrypted; use https")
        self._url = config.url if parts.path.endswith(tail) else config.url.rstrip("/") + tail
        self._next, self._lock = 0.0, threading.Lock()
        self._refused = ""      # why no prompt will be answered
        self._open = urllib.request.build_opener(_NoRedirect).open

    def generate(self, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0,
                 show_progress: bool = False) -> list[Reply]:
        """The model's words for every prompt, in order; `seed` is not part of the formats and is ignored."""
        bodies = [self._body(prompt, max_new_tokens, temperature) for prompt in prompts]
        with concurrent.futures.ThreadPoolExecutor(max(1, self.config.workers)) as pool:
            return list(tqdm(pool.map(self._ask, bodies), total=len(bodies), desc="asking", unit="prompt",
                             disable=not show_progress))

    def _body(self, prompt: Prompt, max_new_tokens: int, temperature: float) -> bytes:
        before, behind = divided_at_places(prompt.question, 1 + len(prompt.more))
        content: list[dict[str, Any]] = []
        for one, text in zip(prompt.each, before or ("",), strict=True):
            content += _texts(text)
            if one.image != b"":
                content.append(self._picture(one))
        content += _texts(behind.removeprefix("\n") if before else behind)
        body = {"model": self.config.model, "max_tokens": max_new_tokens, "temperature": temperature,
                "messages": [{"role": "user", "content": content}], **dict(self.config.parameters)}
        return json.dumps({name: value for name, value in body.items() if value is not None}).encode()

    def _picture(self, prompt: Prompt) -> dict[str, Any]:
        kind, data = picture(prompt, self.config.longest_side)
        encoded = base64.b64encode(data).decode()
        if self.config.format == "anthropic":
            return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": encoded}}
        return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{encoded}"}}

    def _headers(self) -> dict[str, str]:
        if self.config.format == "anthropic":
            return {"content-type": "application/json", "anthropic-version": "2023-06-01",
                    **({"x-api-key": self._key} if self._key else {})}
        return {"Content-Type": "application/json",
                **({"Authorization": f"Bearer {self._key}"} if self._key else {})}

    def _ask(self, body: bytes) -> Reply:
        """One prompt, again and again where that may help."""
        failure = ""
        for attempt in range(max(1, self.config.attempts)):
            if self._refused:
                return Reply(failure=self._refused, fatal=True)
            self._take_turn()
            delay = min(_LONGEST_WAIT, 2.0 ** attempt) * random.uniform(0.5, 1.0)
            try:
                request = urllib.request.Request(self._url, body, self._headers(), method="POST")
                with self._open(request, timeout=self.config.timeout) as response:
                    return self._read(response.read())
            except urllib.error.HTTPError as error:
                said = _said(error)
                failure = f"status {error.code}{said}"
                if error.code in _FATAL or 300 <= error.code < 400:
                    why = _FATAL.get(error.code, "it sends us elsewhere")
                    self._refused = (f"--endpoint {self._url}: {why} (status {error.code}{said}); check the address, "
                                     f"--endpoint-model and the key in {self._variable}")
                    continue
                if error.code not in _AGAIN:
                    return Reply(failure=failure)
                delay = max(delay, _retry_after(error.headers.get("retry-after", "")))
            except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                failure = "timeout" if isinstance(reason, TimeoutError) else f"no connection ({reason})"
            except _Nonsense as error:
                failure = str(error)
            if attempt + 1 < self.config.attempts:
                self._wait(delay)
        return Reply(failure=self._refused or f"{failure}, {self.config.attempts} attempts", fatal=bool(self._refused))

    def _take_turn(self) -> None:
        """Waits until the rate limit allows another request."""
        if self.config.per_minute > 0:
            with self._lock:
                now = time.monotonic()
                start = max(now, self._next)
                self._next = start + 60 / self.config.per_minute
            if start > now:
                self._wait(start - now)

    def _read(self, data: bytes) -> Reply:
        try:
            answer = json.loads(data)
            usage = answer.get("usage") or {}
            if self.config.format == "anthropic":
                text = "".join(part["text"] for part in answer["content"] if part["type"] == "text")
                tokens = usage.get("input_tokens", 0), usage.get("output_tokens", 0)
            else:
                message = answer["choices"][0]["message"]
                text = message.get("content") or message.get("refusal") or ""
                tokens = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
            if not isinstance(text, str):
                raise TypeError("content is no text")
            return Reply(text, tokens=(int(tokens[0]), int(tokens[1])))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _Nonsense(f"an answer that is not of the format {self.config.format} "
                            f"({type(error).__name__})") from None


def picture(prompt: Prompt, longest_side: int) -> tuple[str, bytes]:
    """(media type, encoded picture) as a local model would see it: regions drawn on, at most `longest_side` pixels.

    JPEG and PNG files within the size go as they are.
    """
    if prompt.image is None:
        pixels = images.blank(_BLANK)
    else:
        size = images.image_size(prompt.image, prompt.image_id)
        kind = {b"\xff\xd8\xff": "image/jpeg", b"\x89PN": "image/png"}.get(prompt.image[:3])
        if kind and not prompt.marks and max(size) <= longest_side:
            return kind, prompt.image
        pixels = images.draw_regions(images.decode(prompt.image, prompt.image_id), prompt.marks)
    image = Image.fromarray(pixels)
    image.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)     # thin coloured boxes keep their colour
    return "image/jpeg", buffer.getvalue()


def _texts(text: str) -> list[dict[str, Any]]:
    """A part of a message; none for white space alone, which some interfaces refuse."""
    return [{"type": "text", "text": text}] if text.strip() else []


class _Nonsense(Exception):
    """An answer that is not of the format."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key elsewhere."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _said(error: urllib.error.HTTPError) -> str:
    """The server's own words, briefly."""
    try:
        found = json.loads(error.read(4096))
        message = found.get("error", found)
        message = message.get("message", "") if isinstance(message, dict) else message
        return f": {str(message)[:200]}" if message else ""
    except (ValueError, OSError, AttributeError, http.client.HTTPException):
        return ""


def _retry_after(text: str) -> float:
    """Seconds that a "retry-after" header asks for, at most a minute."""
    try:
        return min(_LONGEST_WAIT, max(0.0, float(text)))
    except ValueError:
        pass
    try:
        moment = email.utils.parsedate_to_datetime(text).timestamp()
        return min(_LONGEST_WAIT, max(0.0, moment - time.time()))
    except (ValueError, TypeError):
        return 0.0
