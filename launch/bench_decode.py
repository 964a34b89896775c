"""Generated tokens per second beside transformers' `generate`, a batch of pictures at a time.

Both sides run one LLaVA (CLIP, a two-layer connector, Llama) from the same weights in float32, greedily, on the same
cores, in turns; pictures are encoded within the measured time on both. The tokens of both are compared first: answers
of another model are refused.

1. A batch: `--batch` prompts with a picture each, `--new` tokens for each. The peer takes all of them at once, padded
   on the left, with its key/value cache and scaled dot-product attention.
2. Answers that end when they end: `--batches` times as many prompts, lengths from a log-normal distribution around
   `--new` with `--spread`, at most four times `--new`. The peer goes through them batch by batch, and a batch until its
   longest answer has ended. Ours has as many lanes, which are filled again. Tokens behind an answer's end do not count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch import bench_peer, bench_report, cli
from launch import bench_train_data as data
from spatialllm_jax.errors import UserError

_AGREE = 0.9        # share of equal answers: float32 sums in another order decide near ties otherwise
_LONGEST = 4        # times --new: the longest answer
_TEXT = (20, 60)    # tokens of a question, from and below
Prompts = list[tuple[np.ndarray, int]]      # token ids with the picture's in place, and which picture


def parser() -> argparse.ArgumentParser:
    """The flags of this benchmark."""
    result = cli.parser((__doc__ or "").splitlines()[0], prog="python -m launch.bench decode")
    data.add_flags(result)
    result.add_argument("--batch", type=int, default=16, help="prompts answered at a time")
    result.add_argument("--new", type=int, default=64, help="tokens of every answer in the batch")
    result.add_argument("--batches", type=int, default=6, help="prompts whose answers differ in length, in batches")
    result.add_argument("--spread", type=float, default=0.8, help="of these lengths: deviation of their logarithm")
    result.add_argument("--repeats", type=int, default=3, help="turns; the figures are medians")
    return result


def bench(argv: Sequence[str]) -> dict[str, Any]:
    """Runs both sides in turns and prints their figures; see the module."""
    args = parser().parse_args(argv)
    for name in ("batch", "new", "batches", "repeats", "cores"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} must be at least 1")
    if not 0 <= args.spread < 10:
        raise UserError(f"--spread {args.spread} must be from 0 to 10")
    longest = 3 + args.grid**2 + _TEXT[1] + _LONGEST * args.new
    size = data.size_of(args, rows=1, length=longest)
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory(prefix="bench-decode-") as name, bench_report.on_cores(args.cores, "--cores"):
        ours, peer, parameters = _sides(size, Path(name), args)
        result: dict[str, Any] = {"parameters": parameters, "cores": args.cores, "repeats": args.repeats}
        batch = _prompts(size, args.batch, rng)
        lengths = [args.new] * args.batch
        result |= _compared("tokens_per_second", batch, lengths, args, ours, peer, sum(lengths), args.batch)
        uneven = _prompts(size, args.batches * args.batch, rng)
        lengths = _uneven(len(uneven[0]), args, rng)
        result |= _compared("uneven_tokens_per_second", uneven, lengths, args, ours, peer, sum(lengths), args.batch)
    bench_report.table(result)
    return bench_report.finish(result, "flax", "torch", "transformers")


def _prompts(size: data.Size, count: int, rng: np.random.Generator) -> tuple[Prompts, np.ndarray]:
    """(prompts, a picture for each)."""
    token = data.image_token(size)
    prompts = []
    for picture in range(count):
        frame, text = rng.integers(3, token, 3), rng.integers(3, token, rng.integers(*_TEXT))
        prompts.append((np.r_[frame, [token] * size.image_tokens, text], picture))
    return prompts, rng.integers(0, 256, (count, size.image_size, size.image_size, 3), dtype=np.uint8)


def _uneven(count: int, args: argparse.Namespace, rng: np.random.Generator) -> list[int]:
    drawn = args.new * np.exp(args.spread * rng.standard_normal(count))
    lengths: list[int] = np.clip(drawn, 1, _LONGEST * args.new).astype(int).tolist()
    return lengths


Side = Callable[[Prompts, np.ndarray, list[int], int], list[list[int]]]


def _sides(size: data.Size, folder: Path, args: argparse.Namespace) -> tuple[Side, Side, int]:
    """Both sides over the same weights: (prompts, pictures, tokens of each answer, prompts at a time) ->
    answers."""
    model, processor, parameters = bench_peer.written(size, folder, args)
    import torch

    def peer(prompts: Prompts, pixels: np.ndarray, lengths: list[int], at_once: int) -> list[list[int]]:
        found: list[list[int]] = []
        for start in range(0, len(prompts), at_once):
            part, ends = prompts[start:start + at_once], torch.tensor(lengths[start:start + at_once])
            width = max(len(tokens) for tokens, _ in part)
            ids, mask = np.zeros((2, len(part), width), np.int64)
            for row, (tokens, _) in enumerate(part):
                ids[row, width - len(tokens):], mask[row, width - len(tokens):] = tokens, 1
            values = processor([pixels[picture] for _, picture in part], return_tensors="pt")["pixel_values"]
            new = int(ends.max())
            with torch.inference_mode():
                out = model.generate(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask),
                                     pixel_values=values, do_sample=False, max_new_tokens=new, min_new_tokens=new,
                                     stopping_criteria=[lambda ids, _, width=width, ends=ends:
                                                        ids.shape[1] - width >= ends], pad_token_id=0)
            found += [row[width:width + end].tolist() for row, end in zip(out, ends.tolist(), strict=True)]
        return found

    return _ours(size, folder / "model", args.batch), peer, parameters


def _ours(size: data.Size, folder: Path, concurrent: int) -> Side:
    import jax
    import jax.numpy as jnp
    from flax import traverse_util

    from convert.folders import open_weights
    from spatialllm_jax.data.chat import Encoded
    from spatialllm_jax.inference import board, lanes, schedule
    from spatialllm_jax.inference.engine import arranged

    stored = open_weights(folder)
    model, params = arranged(stored.config, traverse_util.unflatten_dict(stored.load(), sep="/"))
    boards: dict[lanes.Shape, board.Board] = {}

    @jax.jit
    def look(params: Any, pixels: jax.Array) -> jax.Array:
        tokens: Any = model.apply({"params": params}, pixels[:, None], method="visual_tokens")
        return tokens

    def encoded(tokens: np.ndarray) -> Encoded:
        visual, zeros = tokens == data.image_token(size), np.zeros(len(tokens), np.int32)
        return Encoded(np.where(visual, 0, tokens).astype(np.int32), zeros > 0, zeros, np.arange(len(tokens)),
                       np.where(visual, np.cumsum(visual) - 1, -1).astype(np.int32), ())

    def side(prompts: Prompts, pixels: np.ndarray, lengths: list[int], _: int) -> list[list[int]]:
        requests = [board.Request(picture, *schedule.divided(encoded(tokens)), length)
                    for (tokens, picture), length in zip(prompts, lengths, strict=True)]
        shape = schedule.fitting(requests, concurrent, max(lengths))
        if shape not in boards:
            boards[shape] = board.Board(model, params, shape, np.zeros(0, np.int32),
                                        lanes.empty(model, shape, size.image_tokens))
        visual = look(params, pixels)
        found: list[list[int]] = [[] for _ in prompts]
        boards[shape].answer(requests, lambda indices: jnp.take(visual, np.array([prompts[k][1] for k in indices]), 0),
                             found.__setitem__)
        return found

    return side


def _compared(name: str, prompts: tuple[Prompts, np.ndarray], lengths: list[int], args: argparse.Namespace, ours: Side,
              peer: Side, amount: int, at_once: int) -> dict[str, Any]:
    """Medians of both sides in `amount` per second and of the ratios, after a first turn that compiles and compares."""
    def timed(side: Side) -> tuple[float, list[list[int]]]:
        began = time.perf_counter()
        found = side(*prompts, lengths, at_once)
        return time.perf_counter() - began, found

    (_, mine), (_, theirs) = timed(ours), timed(peer)
    equal = float(np.mean([a == b for a, b in zip(mine, theirs, strict=True)]))
    if equal < _AGREE:
        raise UserError(f"only {equal:.0%} of the answers are PyTorch's: these are different computations, and their "
                        "speeds mean nothing")
    turns = [(timed(ours)[0], timed(peer)[0]) for _ in range(args.repeats)]
    return {**bench_report.median(f"{name}_ours", [amount / a for a, _ in turns], 1),
            **bench_report.median(f"{name}_peer", [amount / b for _, b in turns], 1),
            **bench_report.median(f"{name}_ratio", [b / a for a, b in turns], 2),
            f"{name}_equal_answers": round(equal, 3)}
