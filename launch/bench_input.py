"""Speed of the input pipeline against PyTorch's, and how much of a batch is padding."""

from __future__ import annotations

import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
import simplejpeg
from PIL import Image

from launch import bench_report, cli
from spatialllm_jax.data import images, lengths, pipeline
from spatialllm_jax.data import tokenizer as tokenizers
from spatialllm_jax.data.samples import SourceConfig, TextConfig
from spatialllm_jax.errors import UserError

_WIDTH, _HEIGHT = 640, 480
_BATCH = 16


def bench(args: Sequence[str]) -> dict[str, Any]:
    """Reads the same JPEGs through both pipelines, in turns, on the same cores, and packs made-up lengths.

    Both read files, decode, pad to a square, resize to `--image-size` and make batches of 16. Ours also tokenises
    a caption and hands over uint8, which the device normalises; PyTorch's `DataLoader` runs transformers'
    CLIPImageProcessor after LLaVA's padding and hands over normalised floats, without any text.
    """
    parser = cli.parser("Images per second and core, and packing density.", prog="python -m launch.bench input")
    parser.add_argument("--images", type=int, default=256, help="JPEGs of 640 x 480 smooth noise to read per repeat")
    parser.add_argument("--image-size", type=int, default=336, help="side of the squares in pixels")
    parser.add_argument("--workers", type=int, default=1, help="our threads, PyTorch's processes, and cores for either")
    parser.add_argument("--repeats", type=int, default=5, help="turns; the figures are medians")
    parser.add_argument("--samples", type=int, default=16384, help="samples of the length distribution")
    parser.add_argument("--seed", type=int, default=0, help="of pictures and lengths")
    flags = parser.parse_args(args)
    if flags.images < 2 * _BATCH or min(flags.workers, flags.repeats, flags.samples) < 1:
        raise UserError(f"--images must be at least {2 * _BATCH}; --workers, --repeats and --samples at least 1")
    result = {"images": flags.images, "workers": flags.workers, "repeats": flags.repeats,
              **_speed(flags), **_density(flags.samples, flags.seed)}
    print(f"{result['ours']} images per second and core {_between(result['ours_spread'])}, PyTorch's {result['peer']} "
          f"{_between(result['peer_spread'])}: {result['ratio']} times as many")
    print(f"positions used on lengths like Mix665K's: packed in rows of 4096 {result['packed_4096']:.1%} "
          f"(Grain's first fit {result['first_fit_4096']:.1%}), of 2048 {result['packed_2048']:.1%}; padded as LLaVA "
          f"does {result['padded']:.1%}, grouped by length {result['padded_grouped']:.1%}")
    return bench_report.finish(result, "torch", "transformers", "pillow", "simplejpeg", "grain")


def _between(spread: Sequence[float]) -> str:
    return f"({spread[0]} to {spread[1]})"


def _speed(flags: Any) -> dict[str, float]:
    peer_type = _peer()
    with tempfile.TemporaryDirectory() as folder, bench_report.on_cores(flags.workers, "--workers"):
        _write_pictures(Path(folder), flags.images, flags.seed)
        ours = _ours(Path(folder), flags)
        peer = peer_type(Path(folder), flags)
        _rate(ours, flags), _rate(peer, flags)      # files into the page cache, code into memory
        ours_rates, peer_rates = [], []
        for _ in range(flags.repeats):
            ours_rates.append(_rate(ours, flags))
            peer_rates.append(_rate(peer, flags))
    first, second = statistics.median(ours_rates), statistics.median(peer_rates)
    return {**bench_report.median("ours", ours_rates, 1), **bench_report.median("peer", peer_rates, 1),
            "ratio": round(first / second, 2)}


def _rate(batches: Callable[[], Iterator[Any]], flags: Any) -> float:
    """Images per second and core, once the first batch is there: starting processes is not counted."""
    stream = batches()
    next(stream)
    count = flags.images // _BATCH - 1
    start = time.perf_counter()
    for _ in range(count):
        next(stream)
    return count * _BATCH / (time.perf_counter() - start) / flags.workers


def _ours(folder: Path, flags: Any) -> Callable[[], Iterator[Any]]:
    tokenizer = tokenizers.train(["a picture of smooth noise"], 400)
    source = SourceConfig("noise", str(folder / "noise.json"), form="plain")
    rows = pipeline.RowConfig(_BATCH, 64, 1, flags.image_size, packing=False)
    return lambda: iter(pipeline.build([source], TextConfig("compact", 64, 16), rows, tokenizer, seed=flags.seed,
                                       threads=flags.workers))


def _peer() -> Callable[[Path, Any], Callable[[], Iterator[Any]]]:
    try:
        import torch
        from transformers import CLIPImageProcessor, logging
    except ImportError:
        raise UserError("the benchmark compares with PyTorch, which is missing; install the extra torch") from None
    logging.set_verbosity_error()

    class Pictures(torch.utils.data.Dataset):
        def __init__(self, folder: Path, size: int):
            self.files = [folder / entry["image"] for entry in json.loads((folder / "noise.json").read_text())]
            self.processor = CLIPImageProcessor(
                size={"shortest_edge": size}, crop_size={"height": size, "width": size})

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> Any:
            picture = Image.open(io.BytesIO(self.files[index].read_bytes())).convert("RGB")
            side = max(picture.size)
            square = Image.new("RGB", (side, side), images.MEAN_COLOUR)
            square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
            return self.processor(square, return_tensors="pt")["pixel_values"][0]

    def peer(folder: Path, flags: Any) -> Callable[[], Iterator[Any]]:
        loader = torch.utils.data.DataLoader(Pictures(folder, flags.image_size), batch_size=_BATCH, shuffle=True,
                                             num_workers=flags.workers, drop_last=True)
        return lambda: iter(loader)

    return peer


def _write_pictures(folder: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    entries = []
    for index in range(count):
        coarse = rng.integers(0, 256, (_HEIGHT // 16, _WIDTH // 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC))
        name = f"{index:05d}.jpg"
        (folder / name).write_bytes(simplejpeg.encode_jpeg(smooth, 90, "RGB", "420"))
        entries.append({"id": str(index), "image": name, "conversations": [
            {"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a picture of smooth noise"}]})
    (folder / "noise.json").write_text(json.dumps(entries))


def _density(count: int, seed: int) -> dict[str, float]:
    sizes, pictures = lengths.like_mix665k(count, seed=seed)
    result = {}
    for length, slots in ((4096, 6), (2048, 3)):
        rows = pipeline.RowConfig(1, length, slots)
        per_row, density = lengths.pack_statistics(sizes, pictures, rows, seed)
        result[f"packed_{length}"], result[f"samples_per_row_{length}"] = round(density, 4), round(per_row, 2)
        result[f"first_fit_{length}"] = round(first_fit(sizes, pictures, length, slots), 4)
    result["padded"] = round(lengths.padded_density(sizes, pictures, grouped=False), 4)
    result["padded_grouped"] = round(lengths.padded_density(sizes, pictures, grouped=True), 4)
    return result


def first_fit(sizes: np.ndarray, pictures: np.ndarray, length: int, slots: int, bins: int = 32) -> float:
    """Share of positions used by Grain's FirstFitPackIterDataset with `bins` open rows."""
    source = grain.MapDataset.source(list(zip(sizes.tolist(), pictures.tolist(), strict=True)))
    samples = source.map(lambda pair: {"tokens": np.ones(pair[0], np.int8), "slots": np.ones(pair[1], np.int8)})
    rows = grain.experimental.FirstFitPackIterDataset(
        samples.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)),
        length_struct={"tokens": length, "slots": slots}, num_packing_bins=bins, shuffle_bins=False)
    used = [int(row["tokens"].sum()) for row in rows]
    return sum(used) / (len(used) * length)
