"""Pseudo-labels: milliseconds and memory per picture and stage; with --memory, whether memory stays as it is.

    python -m launch.bench pseudo_labels                        small random models of the real classes
    python -m launch.bench pseudo_labels --models config        the models that configs/data/3di_pb_oi1m.py names
    python -m launch.bench pseudo_labels --memory 10000         a folder of so many pictures, labelled with true depth
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import gc
import hashlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs.data import families
from launch import bench_report, cli
from spatialllm_jax.engines import Local
from spatialllm_jax.errors import UserError
from spatialllm_jax.sources.pseudo_labels.config import Filters, Judging, PseudoLabelConfig, pseudo_label_config
from spatialllm_jax.sources.pseudo_labels.folder import Labeller, label_folder
from spatialllm_jax.sources.pseudo_labels.interfaces import Estimators, Picture
from spatialllm_jax.sources.pseudo_labels.models.opening import open_estimators
from spatialllm_jax.sources.pseudo_labels.models.small import write_small_models
from spatialllm_jax.sources.pseudo_labels.pictures import read_picture
from spatialllm_jax.sources.pseudo_labels.pipeline import STAGES
from spatialllm_jax.sources.pseudo_labels.truth import Noise, Truth
from spatialllm_jax.sources.rendered.config import RenderConfig
from spatialllm_jax.sources.rendered.source import render

_WORDS = ("car", "person", "dog", "chair", "traffic light", "dining table")
_SCENES = 8     # rendered pictures that a folder for --memory repeats


def bench(argv: Sequence[str]) -> dict[str, Any]:
    """Times the stages picture by picture in this process, or labels a large folder and watches its memory."""
    parser = cli.parser((__doc__ or "").splitlines()[0], prog="python -m launch.bench pseudo_labels")
    parser.add_argument("--images", type=int, default=20, help="pictures to time")
    parser.add_argument("--width", type=int, default=640, help="of the pictures in pixels; the height is 3/4 of it")
    parser.add_argument("--models", choices=("small", "config"), default="small",
                        help="small random ones, or those of the dataset's config")
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="instead: label a folder of N pictures")
    args = parser.parse_args(argv)
    if args.images < 1 or args.memory < 0 or not 64 <= args.width <= 8192:
        raise UserError("--images must be at least 1, --memory not negative and --width in 64..8192")
    if args.memory:
        return bench_report.finish(_memory(args.memory), "scipy")
    return bench_report.finish(_stages(args), "torch", "transformers", "scipy")


def _stages(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.models == "small":
            # Random models are unsure of everything: no filter but those of the points, so that all stages have work.
            config = PseudoLabelConfig(
                models=write_small_models(folder / "models", _WORDS), vocabulary=_WORDS, sizes=families.LARGEST,
                filters=Filters(confidence=0.0, box_threshold=0.0, text_threshold=0.0),
                judging=Judging(least_confidence=1e-6))
        else:
            config = pseudo_label_config(families.PSEUDO_LABELS)
        start = time.perf_counter()
        estimators = open_estimators(config)
        opening = time.perf_counter() - start
        names = [f"{k}.jpg" for k in range(args.images + 1)]
        for k, file in enumerate(names):
            _picture(args.width, k).save(folder / file, "JPEG", quality=90)
        labeller = Labeller(folder, config, estimators)
        labeller(names[0])      # first calls build what later ones use
        watch = Watch()
        labeller, gone = dataclasses.replace(labeller, watch=watch), 0
        start = time.perf_counter()
        for file in names[1:]:
            gone += not labeller(file).scene
        seconds = (time.perf_counter() - start) / args.images
        watch.stop()
    print(f"{args.images} pictures of {args.width}x{args.width * 3 // 4}, {args.models} models on "
          f"{config.models.device or 'the first accelerator'}; {args.images - gone} scenes")
    print(f"{'stage':12s}{'ms/picture':>12s}{'slowest':>10s}{'MiB more at the peak':>22s}")
    stages = {}
    for stage in ("reading", *STAGES):
        spent = [1e3 * value for value in watch.seconds.get(stage, [0.0])]
        stages[stage] = {"milliseconds": round(statistics.median(spent), 2), "slowest": round(max(spent), 2),
                         "mebibytes": round(watch.peaks.get(stage, 0) / 2**20, 1)}
        print(f"{stage:12s}{stages[stage]['milliseconds']:>12}{stages[stage]['slowest']:>10}"
              f"{stages[stage]['mebibytes']:>22}")
    print(f"{'all':12s}{1e3 * seconds:>12.1f} ms, {1 / seconds:.2f} pictures per second; models open in "
          f"{opening:.1f} s, {resident() / 2**20:.0f} MiB resident")
    return {"images": args.images, "width": args.width, "models": args.models, "stages": stages,
            "milliseconds": round(1e3 * seconds, 1), "images_per_second": round(1 / seconds, 2),
            "resident_mib": round(resident() / 2**20)}


def _picture(width: int, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, width * 3 // 4), Image.Resampling.BICUBIC)


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Seconds of each stage, and by how many bytes this process grew beyond its size at the stage's beginning."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.peaks: dict[str, int] = {}
        self._stage, self._before, self._running = "", 0, True
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._before, self._stage = resident(), stage
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds.setdefault(stage, []).append(time.perf_counter() - start)
            self._note()
            self._stage = ""

    def _note(self) -> None:
        if stage := self._stage:
            self.peaks[stage] = max(self.peaks.get(stage, 0), resident() - self._before)

    def _sample(self) -> None:
        while self._running:
            self._note()
            time.sleep(0.002)

    def stop(self) -> None:
        """Ends the sampling."""
        self._running = False
        self._thread.join()


def _memory(count: int) -> dict[str, Any]:
    config = PseudoLabelConfig(sizes=families.LARGEST)
    with tempfile.TemporaryDirectory() as name:
        pictures = Path(name) / "pictures"
        pictures.mkdir()
        known = {}
        for k in range(_SCENES):
            rendered = render(RenderConfig(image_size=128), 5, k)
            first = pictures / f"{k:07d}.jpg"
            first.write_bytes(rendered.scene.image.read())
            read = read_picture(first, config.max_side)
            assert read.picture is not None
            known[_key(read.picture)] = Truth(rendered, Noise(), k)
        for k in range(_SCENES, count):
            os.link(pictures / f"{k % _SCENES:07d}.jpg", pictures / f"{k:07d}.jpg")
        sizes: dict[int, int] = {}
        start = time.perf_counter()
        scenes, ignored = label_folder(pictures, Path(name) / "labels", config, Local(),
                                       opener=functools.partial(_open_known, known, count, sizes))
        seconds = time.perf_counter() - start
        with scenes.open() as lines:
            written = sum(1 for _ in lines)
    print(f"{count} pictures labelled with true depth in {seconds:.0f} s, {written} scenes, left out {dict(ignored)}")
    figures = {at: round(size / 2**20, 1) for at, size in sorted(sizes.items())}
    for at, size in figures.items():
        print(f"  after {at:>7} pictures {size:>8} MiB resident")
    return {"pictures": count, "scenes": written, "seconds": round(seconds, 1),
            "resident_mib": {str(at): size for at, size in figures.items()}}


def _key(image: Picture) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


def _open_known(known: dict[bytes, Truth], count: int, sizes: dict[int, int], config: PseudoLabelConfig) -> Estimators:
    every = max(count // 10, 1)
    here: Any = Known(known, sizes, {every * k for k in range(1, 11)})
    return Estimators(here, here, here, here, here, here)


class Known:
    """The truth about a few pictures, told apart by their pixels; notes the process's size every so many pictures."""

    def __init__(self, known: dict[bytes, Truth], sizes: dict[int, int], marks: set[int]) -> None:
        self._known, self._sizes, self._marks, self._done = known, sizes, marks, 0

    def __getattr__(self, method: str) -> Callable[..., Any]:
        """Any method of the interfaces: all of them start with the picture, whose truth answers."""
        return lambda image, *more: getattr(self._known[_key(image)], method)(image, *more)

    def tags(self, image: Picture) -> tuple[str, ...]:
        """See `interfaces.Tagger`; asked first, once per picture."""
        self._done += 1
        if self._done in self._marks:
            gc.collect()
            self._sizes[self._done] = resident()
        return self._known[_key(image)].tags(image)
