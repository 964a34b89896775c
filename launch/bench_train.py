"""Seconds per training step, supervised tokens per second and peak memory, beside PyTorch and transformers.

Both sides train the same LLaVA (CLIP, a two-layer connector, Llama in Llama-3's proportions) from the same weights, in
float32 and stage 2's way: connector and language model train, the vision tower is frozen. Each is a process of its own,
started fresh on the same cores, and they take turns: ours, the peer, ours, the peer. One process rests while the other
works.

Ours is the step that `launch.train` runs on a CPU: jitted with its state donated, encoders without the blocks whose
output nobody reads, logits of supervised positions alone, AdamW, and the norms and counts of the log. Its pictures are
uint8, copied to the device and normalised within the measured time. By default the backward pass keeps the products
with kernels alone (`model.remat: "dots"`): here that is no slower than keeping everything, and takes half the memory.

The peer is `LlavaForConditionalGeneration` with torch.optim.AdamW, eager as transformers' trainer runs it, with what a
careful user would set: scaled dot-product attention, as many threads as cores, the fused optimizer, gradients set to
None, no gradients in the frozen tower, no cache, no attention mask where nothing is padded, pixels normalised before
the clock starts. It makes logits of all positions, as transformers' forward does.

1. The step: `--rows` full rows of `--length` positions, a picture each. The losses of every turn must agree to 1e-3,
   so gradients and updates do too: a comparison of different computations is refused.
2. Supervised tokens: samples with lengths like Mix665K's (`data.lengths.like_mix665k`, scaled to this size), the same
   on both sides. Ours packs them into rows of twice the longest sample, as the full-size stages do. The peer takes as
   many samples per step and pads each batch to its longest sample; batches are LLaVA's `group_by_modality_length` on
   one device (pictures and texts apart, shuffled), or with `--grouping` samples as they come or neighbours in length.
   Packed and padded batches of the same samples must have the same loss. `--packed-rows 4` makes batches of LLaVA's
   size, 16 samples or so, which pads more and takes 8 GB.
3. Memory: the most that either process has had resident, libraries and compilation included; after 1, and at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from launch import bench_report, cli
from launch import bench_train_data as data
from spatialllm_jax.errors import UserError

_TOLERANCE = 1e-3       # of losses, relative
_MIB = 2**20


def parser() -> argparse.ArgumentParser:
    """The flags of this benchmark."""
    result = cli.parser((__doc__ or "").splitlines()[0], prog="python -m launch.bench train")
    data.add_flags(result)
    result.add_argument("--rows", type=int, default=4, help="samples of the timed step")
    result.add_argument("--length", type=int, default=512, help="positions of each, and of the longest sample")
    result.add_argument("--batches", type=int, default=4, help="packed batches of lengths like Mix665K's; 0 for none")
    result.add_argument("--packed-rows", type=int, default=2, help="rows of a packed batch, twice --length")
    result.add_argument("--supervised", type=float, default=0.5, help="share of a sample's text that is the answer")
    result.add_argument("--grouping", choices=("modality", "length", "none"), default="modality",
                        help="the peer's batches")
    result.add_argument("--repeats", type=int, default=5, help="turns of the step; the figures are medians")
    result.add_argument("--passes", type=int, default=2, help="turns of the packed batches")
    result.add_argument("--remat", default="dots", help="of our model: what its backward pass keeps (docs/training.md)")
    result.add_argument("--unroll", type=int, default=1, help="of our model: layers per step of the scan")
    return result


def bench(argv: Sequence[str]) -> dict[str, Any]:
    """Runs both sides in turns and prints their figures; see the module."""
    args = parser().parse_args(argv)
    size = _checked(args)
    settings = {"remat": args.remat, "unroll": args.unroll}
    with tempfile.TemporaryDirectory(prefix="bench-train-") as name, bench_report.on_cores(args.cores, "--cores"):
        folder = Path(name)
        layout = _prepare(args, size, folder)
        with _Side("ours", folder, settings) as ours, _Side("peer", folder, {}) as peer:
            result = {"parameters": layout.pop("parameters"), "rows": size.rows, "length": size.length,
                      "repeats": args.repeats, "cores": args.cores, **settings, **_steps(args, ours, peer)}
            if args.batches:
                result |= {**layout, **_samples(args, layout, ours, peer)}
    bench_report.table(result)
    return bench_report.finish(result, "flax", "optax", "torch", "transformers")


def _checked(args: argparse.Namespace) -> data.Size:
    size = data.size_of(args, args.rows, args.length, args.packed_rows)
    if min(args.rows, args.packed_rows, args.repeats, args.passes, args.cores, args.unroll) < 1 or args.batches < 0:
        raise UserError("--batches must not be negative, and the other numbers at least 1")
    if args.length < args.grid**2 + 16:
        raise UserError(f"--length {args.length} does not hold a picture of {args.grid**2} visual tokens and a text; "
                        "raise it or lower --grid")
    if not 0 < args.supervised <= 1:
        raise UserError(f"--supervised {args.supervised} is a share above 0 and up to 1")
    return size


def _prepare(args: argparse.Namespace, size: data.Size, folder: Path) -> dict[str, Any]:
    """Writes weights and batches of both sides; returns what they hold."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        parameters = data.write_model(size, folder / "ours", args.seed)
        if args.perturb:
            data.write_model(size, folder / "peer", args.seed, args.perturb)
        else:
            (folder / "peer").symlink_to("ours")
    except ImportError as error:
        raise UserError(f"the peer needs {error.name}; run: pip install spatialllm-jax[torch]") from None
    rng = np.random.default_rng(args.seed)

    def write(side: str, name: str, arrays: data.Arrays) -> None:
        np.savez(folder / f"{side}-{name}.npz", **arrays)       # type: ignore[arg-type]

    step = data.full_rows(size, args.supervised, rng)
    write("ours", "step", data.for_ours(size, [[sample] for sample in step], size.length, 1))
    write("peer", "step", data.for_peer(step))
    packed = data.packed_rows(size, args.batches, args.supervised, rng) if args.batches else []
    samples = [sample for batch in packed for row in batch for sample in row]
    for number, batch in enumerate(packed):
        write("ours", f"packed{number}", data.for_ours(size, batch, size.packed[1]))
    if not packed:
        return {"parameters": parameters}
    write("peer", "same", data.for_peer([sample for row in packed[0] for sample in row]))
    per_step = max(round(len(samples) / len(packed)), 1)
    arranged = {"modality": data.grouped(samples, per_step, rng), "length": data.by_length(samples, per_step),
                "none": data.as_they_come(samples, per_step)}
    for number, padded in enumerate(arranged[args.grouping]):
        write("peer", f"padded{number}", data.for_peer(padded))
    places = len(packed) * size.packed[0] * size.packed[1]
    return {"parameters": parameters, "samples": len(samples), "samples_per_step": per_step,
            "supervised_tokens": data.supervised_tokens(samples), "packed_batches": len(packed),
            "padded_batches": len(arranged[args.grouping]),
            "density_packed": round(sum(len(sample.tokens) for sample in samples) / places, 3),
            **{f"density_padded_{name}": round(data.density(batches), 3) for name, batches in arranged.items()}}


def _steps(args: argparse.Namespace, ours: _Side, peer: _Side) -> dict[str, Any]:
    turns = list(_turns(args.repeats + 1, ours, ["step"], peer, ["step"], "step"))
    worst = max(_agreed(mine, theirs) for mine, theirs in turns)
    del turns[0]        # compiles, and fills caches
    return {**_compared("step_seconds", turns), "loss_difference": float(f"{worst:.1e}"),
            **_memory("peak_mib", *turns[-1])}


def _samples(args: argparse.Namespace, layout: dict[str, Any], ours: _Side, peer: _Side) -> dict[str, Any]:
    mine, theirs = next(_turns(1, ours, ["packed0"], peer, ["same"], "packed and padded"))
    _agreed(mine, theirs)
    turns = list(_turns(args.passes, ours, [f"packed{k}" for k in range(layout["packed_batches"])],
                        peer, [f"padded{k}" for k in range(layout["padded_batches"])], "samples"))
    return {**_compared("supervised_per_second", turns, layout["supervised_tokens"]),
            **_memory("peak_mib_samples", *turns[-1])}


def _turns(count: int, ours: _Side, mine: list[str], peer: _Side, theirs: list[str], what: str,
           ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for _ in tqdm(range(count), desc=what, unit="turn", disable=None):
        yield ours.run(mine), peer.run(theirs)


def _agreed(mine: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The relative difference of the losses. Raises UserError when they are those of different computations."""
    first, second = mine["losses"][0], theirs["losses"][0]
    difference = abs(first - second) / abs(second)
    if not difference <= _TOLERANCE:        # not a number either
        raise UserError(f"the losses are {first:.6f} here and {second:.6f} in PyTorch on the same batch: these are "
                        "different computations, and their speeds mean nothing")
    return difference


def _compared(name: str, turns: list[tuple[dict[str, Any], dict[str, Any]]], amount: int = 0) -> dict[str, Any]:
    """Medians of both sides, in seconds or as `amount` per second, and of the ratios turn by turn: how many times as
    fast ours is, by the clock and in processor time, which other work on the machine disturbs less."""
    def figure(answer: dict[str, Any]) -> float:
        return amount / answer["seconds"] if amount else answer["seconds"]

    result: dict[str, Any] = {}
    for side, values in (("ours", [figure(mine) for mine, _ in turns]), ("peer", [figure(peer) for _, peer in turns])):
        result |= bench_report.median(f"{name}_{side}", values, 1 if amount else 3)
    for label, key in (("ratio", "seconds"), ("processor_ratio", "processor")):
        result |= bench_report.median(f"{name}_{label}", [theirs[key] / mine[key] for mine, theirs in turns], 2)
    return result


def _memory(name: str, mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}_ours": round(mine["peak"] / _MIB), f"{name}_peer": round(theirs["peak"] / _MIB),
            f"{name}_ratio": round(mine["peak"] / theirs["peak"], 2)}


class _Side(contextlib.AbstractContextManager["_Side"]):
    """One side's process (`launch.bench_train_sides`), waiting for orders."""

    def __init__(self, side: str, folder: Path, settings: dict[str, Any]):
        self._log = folder / f"{side}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "launch.bench_train_sides", side, str(folder), json.dumps(settings)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, "JAX_PLATFORMS": "cpu"})
        self._name = side

    def __enter__(self) -> _Side:
        try:
            self._answer()      # loaded, and asleep before the other one starts
        except BaseException:
            self._process.kill()
            raise
        return self

    def run(self, batches: list[str]) -> dict[str, Any]:
        """A step on every batch of those names."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"batches": batches}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            last = (self._log.read_text().strip().splitlines() or ["nothing"])[-1]
            raise UserError(f"the process of {self._name} ended with exit code {self._process.wait()} (-9: out of "
                            f"memory, choose a smaller size), and the last it said is: {last}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __exit__(self, *_: Any) -> None:
        self._process.kill()        # it holds nothing that is to be kept
        self._process.wait()
