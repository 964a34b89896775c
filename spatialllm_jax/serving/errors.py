"""What goes wrong with a request, in OpenAI's words."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass
class RequestError(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        message: one sentence for whoever asked.
        code: a word for programs.
        param: the field at fault.
        retry_after: seconds after which another attempt makes sense.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None

    def __str__(self) -> str:
        return self.message

    @property
    def type(self) -> str:
        """The kind of error, as OpenAI names them."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> dict[str, Any]:
        """What is sent."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def unknown_model(named: str, ours: str) -> RequestError:
    """A model that is not the one served."""
    return RequestError(404, f"model {named!r} does not exist; this server has {ours!r}", "model_not_found", "model")


def wrong(param: str, message: str) -> RequestError:
    """A field that cannot be."""
    return RequestError(400, f"{param}: {message}", "invalid_value", param)
