"""How many questions per second one core makes from loaded scenes; with --turns, how long a whole dataset takes."""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from launch import bench_report, cli, generate
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.storage import decode_record, encode_record
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.build import generate_questions, question_rng
from spatialllm_jax.questions.config import FORMS, QuestionConfig
from spatialllm_jax.questions.types import PROBING_TYPES, SPATIAL_TYPES, VIEW_TYPES
from spatialllm_jax.scene.geometry import projected_bbox, rotation_y
from spatialllm_jax.scene.relations import scene_arrays
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage
from spatialllm_jax.sources.scene_file import write_scenes

_NAMES = ("car", "bus", "person", "dog", "chair", "sofa", "bed", "bicycle")
_PICTURES = 64
# Fewest turns that one scene of the whole-dataset run gives; more scenes than needed are harmless.
_TURNS_PER_SCENE = 5


def parser() -> argparse.ArgumentParser:
    """The flags of this benchmark."""
    result = cli.parser((__doc__ or "").splitlines()[0], prog="python -m launch.bench questions")
    result.add_argument("--scenes", type=int, default=500, help="scenes to ask about")
    result.add_argument("--objects", type=int, default=5, help="objects per scene, at most 8")
    result.add_argument("--per-type", type=int, default=3, help="questions per type and image")
    result.add_argument("--repeats", type=int, default=3, help="rounds; the median counts")
    result.add_argument("--turns", type=int, default=0,
                        help="also write 3DI-Ft with this many turns, from a scene file, and measure time and memory")
    result.add_argument("--workers", type=int, default=2, help="processes, with --turns")
    return result


def bench(argv: Sequence[str]) -> dict[str, Any]:
    """Times question generation (SpatialVQA's types; probing too; 3DI-Ft's forms), storage, and whole datasets."""
    args = parser().parse_args(argv)
    if args.turns < 0 or min(args.scenes, args.per_type, args.repeats, args.workers) < 1 or not 2 <= args.objects <= 8:
        raise UserError("--turns must not be negative, --objects 2 to 8, and the other numbers at least 1")
    result = {"turns": args.turns, **_whole(args)} if args.turns else _parts(args)
    bench_report.table(result)
    return bench_report.finish(result)


def _parts(args: argparse.Namespace) -> dict[str, Any]:
    scenes = [_scene(k, args.objects) for k in range(args.scenes)]
    spatial = QuestionConfig("ft", dict.fromkeys(SPATIAL_TYPES, args.per_type))
    everything = QuestionConfig("all", dict.fromkeys((*SPATIAL_TYPES, *PROBING_TYPES), args.per_type))
    result: dict[str, Any] = {"scenes": args.scenes, "objects": args.objects}
    kinds = dict.fromkeys((*SPATIAL_TYPES, *VIEW_TYPES), args.per_type)
    mixed = QuestionConfig("mix", kinds, forms=dict.fromkeys(FORMS, 1.0), region_labels="conversation")
    for name, config in (("questions_per_second", spatial), ("with_probing_per_second", everything),
                         ("all_forms_per_second", mixed)):
        rates = []
        for _ in range(args.repeats):
            start, count = time.perf_counter(), 0
            for k, scene in enumerate(scenes):
                count += len(generate_questions(scene, config, question_rng(0, k)))
            rates.append(count / (time.perf_counter() - start))
        result |= bench_report.median(name, rates, None)
    start = time.perf_counter()
    for scene in scenes:
        scene_arrays(scene)
    result["scene_arrays_ms"] = round((time.perf_counter() - start) / len(scenes) * 1e3, 3)
    records = [
        ImageRecord(s.image.id, b"0" * 10_000, 224, 224, tuple(generate_questions(s, spatial, question_rng(0, k))))
        for k, s in enumerate(scenes)
    ]
    start = time.perf_counter()
    stored = [encode_record(record) for record in records]
    result["encode_record_ms"] = round((time.perf_counter() - start) / len(records) * 1e3, 3)
    start = time.perf_counter()
    for data in stored:
        decode_record(data)
    result["decode_record_ms"] = round((time.perf_counter() - start) / len(records) * 1e3, 3)
    return result


def _whole(args: argparse.Namespace) -> dict[str, Any]:
    """Writes a 3DI-Ft dataset as a user would; the pictures are 640 x 480 JPEGs of about 70 kB."""
    with tempfile.TemporaryDirectory(prefix="bench-questions-") as name:
        folder = Path(name)
        for k in range(_PICTURES):
            noise = np.random.default_rng(k).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            (folder / f"{k}.jpg").write_bytes(buffer.getvalue())
        scenes = (_scene(k, args.objects, f"{k % _PICTURES}.jpg") for k in range(args.turns // _TURNS_PER_SCENE))
        write_scenes(folder / "scenes.jsonl", scenes)
        memory = _Memory()
        start = time.perf_counter()
        done = generate.main(["--dataset", "3di_ft1m", "--input", f"scenes:{folder / 'scenes.jsonl'}", "--out",
                              str(folder / "ft"), "--questions", str(args.turns), "--workers", str(args.workers)])
        seconds = time.perf_counter() - start
        memory.stop()
        split = done["splits"]["train"]
        size = sum(path.stat().st_size for path in (folder / "ft").iterdir()) / 2**30
    half = memory.peak(0.5)
    return {"written": split["questions"], "images": split["images"], "gibibytes": round(size, 2),
            "seconds": round(seconds, 1), "turns_per_second": round(split["questions"] / seconds),
            "minutes_per_million": round(seconds / split["questions"] * 1e6 / 60, 2),
            "peak_mib_first_half": half, "peak_mib": memory.peak(1.0)}


class _Memory:
    """Samples the memory of this process and its children (proportional set size, Linux) four times a second."""

    def __init__(self) -> None:
        self._samples: list[int] = []
        self._running = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._running:
            self._samples.append(sum(_pss(pid) for pid in _tree()))
            time.sleep(0.25)

    def stop(self) -> None:
        self._running = False
        self._thread.join()

    def peak(self, share: float) -> int:
        """Most MiB in use during the first `share` of the time."""
        return max(self._samples[: max(1, round(share * len(self._samples)))], default=0) // 1024


def _tree() -> list[str]:
    pids = ["self"]
    for path in Path("/proc/self/task").glob("*/children"):
        pids.extend(path.read_text().split())
    return pids


def _pss(pid: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass  # ended meanwhile
    return 0


def _scene(seed: int, count: int, picture: str | None = None) -> Scene:
    rng = np.random.default_rng(seed)
    up = np.array([0.0, -1.0, 0.0])
    width, height = (640, 480) if picture else (224, 224)
    focal = 0.9 * width
    camera = Camera(width, height, np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]), -up)
    objects: list[Object3D] = []
    while len(objects) < count:
        z = rng.uniform(3, 12)
        center = np.array([rng.uniform(-0.4, 0.4) * z, rng.uniform(-0.3, 0.3) * z, z])
        box = Box3D(center, rng.uniform(0.5, 2, 3), rotation_y(rng.normal(size=3), up))
        bbox = projected_bbox(box, camera)
        if bbox is not None:
            name = _NAMES[len(objects) % len(_NAMES)]
            objects.append(Object3D(name, name, box, bbox, True))
    return Scene(SceneImage(f"bench-{seed}", path=picture), camera, tuple(objects), True, "bench")
