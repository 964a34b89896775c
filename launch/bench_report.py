"""What benchmarks share: medians with their spread, figures one a line, versions and machine, a number of cores."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spatialllm_jax.errors import UserError

_ALWAYS = ("jax", "numpy")


def median(name: str, values: Sequence[float], digits: int | None = 3) -> dict[str, Any]:
    """The median of repeats under `name`, and the least and the greatest of them under `name`_spread.

    Args:
        digits: kept after the point; None makes whole numbers.
    """
    return {name: round(statistics.median(values), digits),
            f"{name}_spread": [round(min(values), digits), round(max(values), digits)]}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def on_cores(count: int, flag: str) -> Iterator[None]:
    """Keeps this process and its children on `count` cores, where the system can; `flag` is what asked for them."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    if count > len(before):
        raise UserError(f"{flag} {count} is more than the {len(before)} cores of this machine")
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, and the load that others put on them."""
    model = platform.processor() or platform.machine()
    file = Path("/proc/cpuinfo")
    if file.is_file():
        model = next((line.split(":", 1)[1].strip() for line in file.read_text().splitlines()
                      if line.startswith("model name")), model)
    load = {"load": round(os.getloadavg()[0], 1)} if hasattr(os, "getloadavg") else {}
    return {"cpu": model, "cores": cores(), **load, "system": f"{platform.system()} {platform.machine()}"}


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, JAX, numpy and `packages`."""
    return {"python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in (*_ALWAYS, *packages)}}


def table(figures: Mapping[str, Any]) -> None:
    """Prints figures one a line; a spread stands behind its median."""
    width = max(len(name) for name in figures) + 2
    for name, value in figures.items():
        if name.endswith("_spread") and name.removesuffix("_spread") in figures:
            continue
        spread = figures.get(f"{name}_spread")
        print(f"{name:{width}s}{value:>12}" + (f"   ({spread[0]} to {spread[1]})" if spread else ""))


def finish(figures: Mapping[str, Any], *packages: str) -> dict[str, Any]:
    """Prints versions and machine under the figures, and returns all of it for `--json`.

    Args:
        packages: what was measured beside JAX and numpy.
    """
    found, host = versions(*packages), machine()
    print(f"{host['cpu']}, {host['cores']} cores" + (f", load {host['load']}" if "load" in host else "") + "; "
          + ", ".join(f"{name} {version}" for name, version in found.items()))
    return {**figures, "versions": found, "machine": host}
