"""Where the numbers of a run go: one JSON line per logged step, a progress bar with ETA, other trackers on request."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from spatialllm_jax.data import pipeline
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.flops import StepFlops, peak


@dataclasses.dataclass(frozen=True)
class Trackers:
    """Where numbers go beside `metrics.jsonl`.

    Attributes:
        tensorboard: write TensorBoard files into the stage's folder.
        wandb: project of Weights & Biases, or "".
    """

    tensorboard: bool = False
    wandb: str = ""

    def check(self) -> None:
        """Raises UserError when a package is missing; called before any work."""
        for wanted, package in ((self.tensorboard, "tensorboardX"), (bool(self.wandb), "wandb")):
            if wanted:
                try:
                    __import__(package)
                except ImportError:
                    raise UserError(
                        f"{package} is not installed; pip install {package}, or leave out its flag") from None


class MetricsLog:
    """Appends to `metrics.jsonl`; lines at or past `start` are dropped first, so that a resumed run has no
    step twice. Writes nothing unless `enabled` (one process of several)."""

    def __init__(self, folder: Path, start: int, enabled: bool = True, trackers: Trackers | None = None,
                 run: str = ""):
        self._file, self._board, self._wandb = None, None, None
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        kept = [line for line in read_lines(path) if line["step"] <= start]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        if trackers is not None and trackers.tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        if trackers is not None and trackers.wandb:
            import wandb

            self._wandb = wandb.init(project=trackers.wandb, id=run.replace("/", "-"), name=run, resume="allow")

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds one line and flushes it."""
        if self._file is None:
            return
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
        if self._board is not None:
            for key, value in numbers.items():
                self._board.add_scalar(key, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(numbers, step=row["step"])

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


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
    """Averages fetched metrics of several steps into plain numbers: token-weighted per source."""
    sums = {key: np.sum([m["sources"][key] for m in metrics], axis=0) for key in ("loss", "weight", "right")}
    total = max(float(sums["weight"].sum()), 1e-9)
    row: dict[str, Any] = {
        "loss": float(sums["loss"].sum()) / total, "accuracy": float(sums["right"].sum()) / total,
        "tokens": int(sums["weight"].sum()), "grad_norm": float(np.mean([m["grad_norm"] for m in metrics])),
        "param_norm": float(metrics[-1]["param_norm"]), "skipped": int(metrics[-1]["skipped"])}
    for index, name in enumerate(sources[:len(sums["weight"])]):
        weight = float(sums["weight"][index])
        if weight > 0:
            row[f"loss/{name}"] = float(sums["loss"][index]) / weight
            row[f"accuracy/{name}"] = float(sums["right"][index]) / weight
    return row


def not_finite(metrics: Sequence[Mapping[str, Any]]) -> list[int]:
    """Which of these steps changed nothing because their loss or gradients were not finite."""
    return [k for k, step in enumerate(metrics) if not step["finite"]]


def dropped(stream: Any) -> dict[str, int]:
    """Samples that the input pipeline left out so far, by reason."""
    return {f"dropped/{reason}": number for reason, number in pipeline.counts(stream).dropped.items() if number}


def speed(metrics: Sequence[Mapping[str, Any]], seconds: float, flops: StepFlops | None) -> dict[str, float]:
    """Per second: positions that are not padding, samples and images; and MFU where flops and peak are known.

    Over all processes and devices, from the counts that steps return (`training.step.batch_counts`).
    """
    counts = {key: sum(float(m["counts"][key]) for m in metrics) for key in metrics[0]["counts"]}
    row = {f"{key}_per_second": counts[key] / seconds for key in ("positions", "samples", "images")}
    best = peak(jax.devices()[0].device_kind)
    if flops is not None and best is not None:
        row["mfu"] = flops.count(counts) / seconds / (best * jax.device_count())
    return row


def progress(total: int, start: int, name: str, enabled: bool) -> tqdm:
    """A bar over steps."""
    return tqdm(total=total, initial=start, desc=name, unit="step", disable=not enabled, mininterval=2.0,
                dynamic_ncols=True)
