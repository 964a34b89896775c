"""A server's life: bound first, ready when everything is compiled, ended when what runs is done."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from absl import logging

from spatialllm_jax.errors import UserError
from spatialllm_jax.serving import app
from spatialllm_jax.serving.service import Service

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def bind(host: str, port: int) -> socket.socket:
    """A socket on the address, before anything slow is begun. Raises UserError when it is taken or none of ours."""
    if not 0 <= port <= 65535:      # getaddrinfo would take the rest of a division
        raise UserError(f"--port {port} must be from 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as unless_bound:
            sock = unless_bound.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            unless_bound.pop_all()
    except (OSError, UnicodeError) as error:        # the latter for what cannot be a host's name
        reason = error.strerror if isinstance(error, OSError) else "no name of a host"
        raise UserError(f"--host {host} --port {port}: cannot listen there ({reason}); choose others") from None
    return sock


def address(sock: socket.socket) -> str:
    """What to type into a browser."""
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Server(uvicorn.Server):
    """Finishes what runs when told to end, and meanwhile refuses what is new; the second time it ends at once."""

    def __init__(self, service: Service, host: str, ready: Callable[[], None] = lambda: None):
        """Serves `service`; on the loopback interface under its own names alone.

        Args:
            ready: called when connections are accepted.
        """
        self.service, self._ready = service, ready
        super().__init__(uvicorn.Config(
            app.build(service, LOOPBACK if host in LOOPBACK else ()), interface="asgi3",
            log_config=None, access_log=False, lifespan="off", timeout_keep_alive=30, timeout_graceful_shutdown=10,
            server_header=False))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to end."""
        if self.service.draining:
            self.should_exit = self.force_exit = True
        self.service.draining = True
        logging.info("%s: finishing %d requests", signal.Signals(sig).name, self.service.under_way)

    async def on_tick(self, counter: int) -> bool:
        """Ends when there is nothing left to finish."""
        if self.service.draining and not self.service.under_way:
            self.should_exit = True
        return await super().on_tick(counter)
