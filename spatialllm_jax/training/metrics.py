"""Where the numbers of a run go: one JSON line per logged step, and a progress bar with ETA."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm


class MetricsLog:
    """Appends to `metrics.jsonl`; lines at or past `start` are dropped first, so that a resumed run has no
    step twice."""

    def __init__(self, folder: Path, start: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [line for line in read_lines(self.path) if line["step"] <= start]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("a")

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds one line and flushes it."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file; a line cut off by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def summarize(metrics: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> dict[str, Any]:
    """Averages device metrics of several steps into plain numbers: token-weighted per source."""
    host = jax.device_get(list(metrics))
    sums = {key: np.sum([m["sources"][key] for m in host], axis=0) for key in ("loss", "weight", "right")}
    total = max(float(sums["weight"].sum()), 1e-9)
    row: dict[str, Any] = {
        "loss": float(sums["loss"].sum()) / total, "accuracy": float(sums["right"].sum()) / total,
        "tokens": int(sums["weight"].sum()), "grad_norm": float(np.mean([m["grad_norm"] for m in host])),
        "skipped": int(host[-1]["skipped"])}
    for index, name in enumerate(sources[:len(sums["weight"])]):
        weight = float(sums["weight"][index])
        if weight > 0:
            row[f"loss/{name}"] = float(sums["loss"][index]) / weight
            row[f"accuracy/{name}"] = float(sums["right"][index]) / weight
    return row


def progress(total: int, start: int, name: str, enabled: bool) -> tqdm:
    """A bar over steps."""
    return tqdm(total=total, initial=start, desc=name, unit="step", disable=not enabled, mininterval=2.0,
                dynamic_ncols=True)
