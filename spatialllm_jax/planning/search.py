"""The largest number of rows per device that fits, from a few compilations; and what else one could change."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from spatialllm_jax.planning.lowering import Compiled, Job
from spatialllm_jax.planning.targets import GIB


@dataclasses.dataclass(frozen=True)
class Largest:
    """What a search found.

    Attributes:
        rows: per device; 0 when not even one fits.
        peak: bytes at that number, as compiled; at one row when not even that fits.
        exact: whether one row more was compiled and did not fit, or is beyond what the measured slope allows.
        tried: rows -> peak bytes of everything compiled.
    """

    rows: int
    peak: int
    exact: bool
    tried: dict[int, int]


def largest_rows(measure: Callable[[int], int], budget: int, known: dict[int, int], tries: int = 5) -> Largest:
    """Searches by straight lines: memory is nearly linear in rows.

    Args:
        measure: rows -> peak bytes (compiles).
        budget: bytes.
        known: rows -> peak bytes of what has been compiled already.
        tries: compilations at most.
    """
    tried = dict(known)

    def bounds() -> tuple[int, int | None]:
        fitting = [rows for rows, peak in tried.items() if peak <= budget]
        failing = [rows for rows, peak in tried.items() if peak > budget]
        return max(fitting, default=0), min(failing, default=None)

    for _ in range(tries):
        low, high = bounds()
        if high is not None and high - low == 1:
            break
        guess = _guess(tried, budget, low, high)
        if guess in tried:
            break
        tried[guess] = measure(guess)
    low, high = bounds()
    exact = high is not None and (high - low == 1 or _guess(tried, budget, low, high) == low)
    return Largest(low, tried[low] if low else tried[min(tried)], exact, dict(sorted(tried.items())))


def _guess(tried: dict[int, int], budget: int, low: int, high: int | None) -> int:
    """Next number of rows to look at: where the line through the nearest two points meets the budget."""
    points = sorted(tried.items(), key=lambda point: (abs(point[1] - budget), point[0]))[:2]
    points = [point for point in points if point[1] < 2**60]
    if len(points) == 2 and points[0][1] != points[1][1]:
        (r0, p0), (r1, p1) = sorted(points)
        guess = math.floor(r0 + (budget - p0) * (r1 - r0) / (p1 - p0))
    elif high is None:
        guess = 2 * max(low, 1)
    else:
        guess = (low + high) // 2 if low else max(1, high // 4)
    floor, ceiling = low + 1, (high - 1) if high is not None else 4 * max(low, 1)
    return max(min(guess, ceiling), min(floor, ceiling), 1)


def suggestions(job: Job, compiled: Compiled, largest: Largest | None) -> list[str]:
    """Overrides that would make it fit, or use what is left; most useful first."""
    budget, stage, found = job.target.budget, job.stage, []
    if budget is None:
        return []
    data, tensor, name = job.mesh.shape["data"], job.mesh.shape["tensor"], f"--config.stages.{stage.name}"
    if compiled.used > budget:
        if largest is not None and 0 < largest.rows < job.rows:
            total = job.rows * job.ways * stage.accumulate
            micro = max(rows for rows in range(1, largest.rows + 1) if total % (rows * job.ways) == 0)
            found.append(f"--rows {micro} {name}.accumulate={total // (micro * job.ways)}: the same {total} rows per "
                         f"step, {micro} at a time")
        if job.model.remat != "full":
            found.append("--config.model.remat=full: keeps layer inputs alone, and computes the rest again")
        if data > 1:
            found.append(f"--config.mesh.data=1 --config.mesh.fsdp={data * job.mesh.shape['fsdp']}: splits what is now "
                         "repeated")
        if stage.optimizer.moment_dtype == "float32" and (largest is None or largest.rows == 0):
            found.append(f"{name}.optimizer.moment_dtype=bfloat16: first moments at half the size")
        if (largest is None or largest.rows == 0) and job.mesh.shape["fsdp"] > 1:
            found.append(f"--config.mesh.fsdp={job.mesh.shape['fsdp'] // 2} --config.mesh.tensor={2 * tensor}: two "
                         "devices share a row")
        if job.model.attention == "xla" and job.target.machine.platform != "cpu":
            found.append("--config.model.attention=auto: the target's kernel keeps no [T, T] scores")
    else:
        left = (budget - compiled.used) / GIB
        if job.model.remat == "full" and left > 0.2 * budget / GIB:
            found.append(f"{left:.0f} GiB are left: a --config.model.remat that keeps more recomputes less")
        if stage.accumulate > 1 and left > 0.2 * budget / GIB:
            found.append(f"{left:.0f} GiB are left: more --rows with a smaller {name}.accumulate gathers parameters "
                         "less often")
    return found
