"""What a server takes on."""

from __future__ import annotations

import dataclasses

from spatialllm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of requests; more is refused with a plain error.

    Attributes:
        body: bytes of a request.
        pixels: width times height of a picture, looked up before it is decoded.
        images: pictures that a request may name; the model reads one of them.
        regions: boxes drawn on a picture.
        queue: requests that may wait beside those that are answered.
        seconds: for a request, from its first byte to the answer's last.
    """

    body: int = 20 << 20
    pixels: int = 40_000_000
    images: int = 1
    regions: int = 32
    queue: int = 64
    seconds: float = 300.0

    def __post_init__(self) -> None:
        for flag, value in (("--max-body", self.body), ("--max-pixels", self.pixels),
                            ("--request-timeout", self.seconds)):
            if not value > 0:       # so that nan is none
                raise UserError(f"{flag} {value:g} must be positive")
        if self.queue < 0:
            raise UserError(f"--queue {self.queue} must not be negative")
