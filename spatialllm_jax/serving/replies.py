"""Answers in OpenAI's chat format: whole, or in pieces as server-sent events."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from starlette.responses import JSONResponse

from spatialllm_jax.inference.scoring import shares
from spatialllm_jax.serving.errors import RequestError


@dataclasses.dataclass(frozen=True)
class Reply:
    """What all parts of one answer share.

    Attributes:
        id, created: of the answer, the latter in seconds since 1970.
        model: its name.
        prompt_tokens: of the prompt, the picture's included.
    """

    id: str
    created: int
    model: str
    prompt_tokens: int

    def whole(self, text: str, finish: str, tokens: int, **more: Any) -> dict[str, Any]:
        """The answer in one."""
        return {**self._head("chat.completion"), "usage": self._usage(tokens), **more, "choices": [{
            "index": 0, "message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": None,
            "finish_reason": finish}]}

    def opening(self) -> bytes:
        """The first event: who speaks."""
        return self._piece({"role": "assistant", "content": ""})

    def piece(self, text: str) -> bytes:
        """An event with more of the text."""
        return self._piece({"content": text})

    def closing(self, finish: str, tokens: int, usage: bool, **more: Any) -> bytes:
        """The last events: why it ended, if asked for what it took, and the mark of the end."""
        last = self._piece({}, finish, **more)
        if usage:
            last += event({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage(tokens)})
        return last + b"data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self, tokens: int) -> dict[str, int]:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": tokens,
                "total_tokens": self.prompt_tokens + tokens}

    def _piece(self, delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> bytes:
        return event({**self._head("chat.completion.chunk"), **more, "choices": [
            {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]})


def failure(error: RequestError) -> JSONResponse:
    """An error as an answer."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 504:
        headers["Connection"] = "close"       # the request's body may still be on the way
    return JSONResponse(error.body(), error.status, headers)


def event(content: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()


def scored(options: Sequence[str], scores: Float[np.ndarray, N]) -> tuple[str, list[dict[str, Any]]]:
    """(the likeliest option, all with their log-likelihood and their share among them)."""
    return options[int(scores.argmax())], [
        {"text": text, "logprob": float(score), "probability": float(share)}
        for text, score, share in zip(options, scores, shares(scores), strict=True)]
