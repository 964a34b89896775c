"""The addresses of a server: OpenAI's, the page, and what machines ask for."""

from __future__ import annotations

import functools
import hmac
import importlib.resources
import json
from collections.abc import Collection
from typing import Any

from absl import logging
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from spatialllm_jax.data.images import REGION_COLOURS
from spatialllm_jax.questions import wording
from spatialllm_jax.questions.types import SPATIAL_TYPES
from spatialllm_jax.serving import exchange, replies
from spatialllm_jax.serving.errors import RequestError, unknown_model
from spatialllm_jax.serving.service import Service

_OPEN = ("/", "/health")        # need no key
# The page is one file, and nothing else may be loaded or asked from it.
_PAGE_HEADERS = {"Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; "
                 "style-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'; base-uri 'none'; "
                 "form-action 'none'; frame-ancestors 'none'",
                 "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def build(service: Service, hosts: Collection[str] = ()) -> ASGIApp:
    """The application.

    Args:
        hosts: names by which requests may call this server, () for any. On the loopback interface this keeps pages of
            other sites from asking through a name of theirs that points here.
    """
    async def page(request: Request) -> Response:
        return HTMLResponse(_page(service), headers=_PAGE_HEADERS)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(service)]})

    async def model(request: Request) -> Response:
        if (named := request.path_params["name"]) != service.name:
            raise unknown_model(named, service.name)
        return JSONResponse(_model(service))

    async def health(request: Request) -> Response:
        status, said = service.health()
        return JSONResponse(said, status)

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(service.metrics.text(service.gauges()),
                                 media_type="text/plain; version=0.0.4; charset=utf-8")

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return replies.failure(error)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = {404: f"there is nothing at {request.url.path}",
                   405: f"{request.url.path} is not asked by {request.method}"}.get(error.status_code, error.detail)
        return replies.failure(RequestError(error.status_code, message, "not_found"))

    async def failed(request: Request, error: Exception) -> Response:
        return replies.failure(RequestError(500, "the server failed on this request", "internal_error"))

    app = Starlette(
        routes=[Route("/", page), Route("/health", health), Route("/metrics", metrics),
                Route("/v1/models", models), Route("/v1/models/{name:path}", model),
                Route("/v1/chat/completions", exchange.Chat(service), methods=["POST"]),
                Route("/v1/marked", exchange.Marked(service), methods=["POST"])],
        exception_handlers={RequestError: refused, HTTPException: unknown, Exception: failed})
    return functools.partial(_guarded, app, service, frozenset(hosts))


async def _guarded(app: ASGIApp, service: Service, hosts: frozenset[str], scope: Scope, receive: Receive, send: Send,
                   ) -> None:
    """Lets requests through that may be made at all."""
    if scope["type"] == "http":
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0].strip("[]").lower()
        given = headers.get(b"authorization", b"")
        error = None
        if hosts and host not in hosts:
            error = RequestError(403, f"this server is not called {host!r}; start it with --host to be reached by "
                                 "other names", "unknown_host")
        elif service.key and scope["path"] not in _OPEN and not hmac.compare_digest(
                given, f"Bearer {service.key}".encode()):
            error = RequestError(401, "the API key is missing or wrong", "invalid_api_key")
        if error is not None:
            logging.info("%s %s refused: %s", scope["method"], scope["path"], error.code)
            await replies.failure(error)(scope, receive, send)
            return
    await app(scope, receive, send)


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "spatialllm-jax"}


@functools.cache
def _template() -> str:
    return (importlib.resources.files(__package__) / "page.html").read_text(encoding="utf-8")


def _page(service: Service) -> str:
    """The page, with what it has to know about this server."""
    forms = [{"type": kind, "question": wording.FULL[kind][0][0], "objects": list(wording.mentions(
        wording.FULL[kind][0][0]))} for kind in SPATIAL_TYPES]
    settings = {"model": service.name, "forms": forms, "regions": service.limits.regions,
                "colours": REGION_COLOURS, "body": service.limits.body, "key": bool(service.key)}
    return _template().replace("__SETTINGS__", json.dumps(settings).replace("<", "\\u003c"))
