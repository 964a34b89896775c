"""Counts and times of a server, in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import bisect
import collections
import threading
from collections.abc import Mapping, Sequence

_SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Histogram:
    """How many values were at most each bound."""

    def __init__(self, bounds: Sequence[float] = _SECONDS):
        """`bounds` ascend."""
        self.bounds, self.counts, self.total = tuple(bounds), [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value


class Metrics:
    """What a server has done so far; any thread may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests: collections.Counter[int] = collections.Counter()
        self.prompt_tokens = self.completion_tokens = 0
        self.first_token, self.duration = Histogram(), Histogram()

    def finished(self, status: int, seconds: float) -> None:
        """A request was answered with `status` of HTTP; 499 for one whose client went away."""
        with self._lock:
            self.requests[status] += 1
            self.duration.add(seconds)

    def started(self, seconds: float) -> None:
        """The first token of an answer was there so long after its request."""
        with self._lock:
            self.first_token.add(seconds)

    def tokens(self, prompt: int, completion: int) -> None:
        """An answer took so many tokens."""
        with self._lock:
            self.prompt_tokens += prompt
            self.completion_tokens += completion

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """All of it, and gauges: name -> (help, value)."""
        with self._lock:
            lines = _head("requests_total", "counter", "requests by status; 499: the client went away")
            lines += [f'spatialllm_requests_total{{status="{status}"}} {count}'
                      for status, count in sorted(self.requests.items())]
            for name, value, about in (("prompt_tokens_total", self.prompt_tokens, "tokens read, pictures' included"),
                                       ("completion_tokens_total", self.completion_tokens, "tokens written")):
                lines += [*_head(name, "counter", about), f"spatialllm_{name} {value}"]
            for name, (about, level) in gauges.items():
                lines += [*_head(name, "gauge", about), f"spatialllm_{name} {level:g}"]
            lines += _histogram("first_token_seconds", "from a request's first byte to its first token",
                                self.first_token)
            lines += _histogram("request_seconds", "from a request's first byte to its end", self.duration)
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP spatialllm_{name} {about}", f"# TYPE spatialllm_{name} {kind}"]


def _histogram(name: str, about: str, histogram: Histogram) -> list[str]:
    lines, count = _head(name, "histogram", about), 0
    for bound, more in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        count += more
        text = "+Inf" if bound == float("inf") else f"{bound:g}"
        lines.append(f'spatialllm_{name}_bucket{{le="{text}"}} {count}')
    return [*lines, f"spatialllm_{name}_sum {histogram.total:g}", f"spatialllm_{name}_count {count}"]
