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
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch import bench_peer, bench_report, cli
from launch import bench_train_data as data
from spatialllm_jax.errors import UserError

_LONGEST = 4        # times --new: the longest answer
_TEXT = (20, 60)    # tokens of a question, from and below
Asked = tuple[list[np.ndarray], np.ndarray, list[int]]      # token ids, the picture's in place; pictures; tokens to say
Answers = dict[int, list[int]]


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
    cli.at_least_one(args, "batch", "new", "batches", "repeats", "cores")
    if not 0 <= args.spread < 10:
        raise UserError(f"--spread {args.spread} must be from 0 to 10")
    longest = 3 + args.grid**2 + _TEXT[1] + _LONGEST * args.new
    size = data.size_of(args, rows=1, length=longest)
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory(prefix="bench-decode-") as name, bench_report.on_cores(args.cores, "--cores"):
        ours, peer, parameters = _sides(size, Path(name), args)
        result: dict[str, Any] = {"parameters": parameters, "cores": args.cores, "repeats": args.repeats}
        for what, count, spread in (("tokens", 1, 0.0), ("uneven_tokens", args.batches, args.spread)):
            asked = _asked(size, count * args.batch, spread, args.new, rng)
            result |= bench_peer.compared(
                f"{what}_per_second", functools.partial(ours, asked), functools.partial(peer, asked), sum(asked[2]),
                args.repeats)
    bench_report.table(result)
    return bench_report.finish(result, "flax", "torch", "transformers")


def _asked(size: data.Size, count: int, spread: float, new: int, rng: np.random.Generator) -> Asked:
    """Prompts with a picture each, and how long their answers are: `new` tokens, in the median."""
    token = data.image_token(size)
    visual = [token] * size.image_tokens
    prompts = [np.r_[rng.integers(3, token, 3), visual, rng.integers(3, token, rng.integers(*_TEXT))]
               for _ in range(count)]
    pixels = rng.integers(0, 256, (count, size.image_size, size.image_size, 3), dtype=np.uint8)
    if not spread:
        return prompts, pixels, [new] * count
    lengths = np.clip(new * np.exp(spread * rng.standard_normal(count)), 1, _LONGEST * new).astype(int)
    return prompts, pixels, lengths.tolist()


Side = Callable[[Asked], Answers]


def _sides(size: data.Size, folder: Path, args: argparse.Namespace) -> tuple[Side, Side, int]:
    """Both sides over the same weights, and their number."""
    model, processor, parameters = bench_peer.written(size, folder, args)
    import torch

    def peer(asked: Asked) -> Answers:
        prompts, pixels, lengths = asked
        found: list[list[int]] = []
        for start in range(0, len(prompts), args.batch):
            batch = slice(start, start + args.batch)
            part, ends = prompts[batch], torch.tensor(lengths[batch])
            width, new = max(map(len, part)), int(ends.max())
            ids, mask = np.zeros((2, len(part), width), np.int64)
            for row, tokens in enumerate(part):
                ids[row, width - len(tokens):], mask[row, width - len(tokens):] = tokens, 1
            values = processor([*pixels[batch]], return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                out = model.generate(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask),
                                     pixel_values=values, do_sample=False, max_new_tokens=new, min_new_tokens=new,
                                     stopping_criteria=[lambda ids, _, width=width, ends=ends:
                                                        ids.shape[1] - width >= ends], pad_token_id=0)
            found += [row[width:width + end].tolist() for row, end in zip(out, ends.tolist(), strict=True)]
        return dict(enumerate(found))

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

    def side(asked: Asked) -> Answers:
        prompts, pixels, lengths = asked
        requests = [board.Request(picture, *schedule.divided(encoded(tokens)), length)
                    for picture, (tokens, length) in enumerate(zip(prompts, lengths, strict=True))]
        shape = schedule.fitting(requests, concurrent, max(lengths))
        if shape not in boards:
            boards[shape] = board.Board(model, params, shape, np.zeros(0, np.int32),
                                        lanes.empty(model, shape, size.image_tokens))
        visual = look(params, pixels)
        found: Answers = {}
        boards[shape].answer(requests, lambda indices: jnp.take(visual, np.array(indices), 0), found.__setitem__)
        return found

    return side
