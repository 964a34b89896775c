"""How many questions per second one core makes from loaded scenes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from launch import cli
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.storage import decode_record, encode_record
from spatialllm_jax.questions.build import generate_questions, question_rng
from spatialllm_jax.questions.config import QuestionConfig
from spatialllm_jax.questions.types import PROBING_TYPES, SPATIAL_TYPES
from spatialllm_jax.scene.geometry import projected_bbox, rotation_y
from spatialllm_jax.scene.relations import scene_arrays
from spatialllm_jax.scene.types import Box3D, Camera, Object3D, Scene, SceneImage

_NAMES = ("car", "bus", "person", "dog", "chair", "sofa", "bed", "bicycle")


def parser() -> argparse.ArgumentParser:
    """The flags of this benchmark."""
    result = cli.parser((__doc__ or "").splitlines()[0], prog="python -m launch.bench questions")
    result.add_argument("--scenes", type=int, default=500, help="scenes to ask about")
    result.add_argument("--objects", type=int, default=5, help="objects per scene, at most 8")
    result.add_argument("--per-type", type=int, default=3, help="questions per type and image")
    result.add_argument("--repeats", type=int, default=3, help="rounds; the fastest counts")
    return result


def bench(argv: Sequence[str]) -> dict[str, Any]:
    """Times question generation (3DI-Ft types, and all 3D types) and the storage of records."""
    args = parser().parse_args(argv)
    scenes = [_scene(k, args.objects) for k in range(args.scenes)]
    spatial = QuestionConfig("ft", dict.fromkeys(SPATIAL_TYPES, args.per_type))
    everything = QuestionConfig("all", dict.fromkeys((*SPATIAL_TYPES, *PROBING_TYPES), args.per_type))
    result: dict[str, Any] = {"scenes": args.scenes, "objects": args.objects}
    for name, config in (("questions_per_second", spatial), ("with_probing_per_second", everything)):
        best = 0.0
        for _ in range(args.repeats):
            start, count = time.perf_counter(), 0
            for k, scene in enumerate(scenes):
                count += len(generate_questions(scene, config, question_rng(0, k)))
            best = max(best, count / (time.perf_counter() - start))
        result[name] = round(best)
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
    for name, value in result.items():
        print(f"{name:26s}{value:>12}")
    return result


def _scene(seed: int, count: int) -> Scene:
    rng = np.random.default_rng(seed)
    up = np.array([0.0, -1.0, 0.0])
    camera = Camera(224, 224, np.array([[200.0, 0, 112], [0, 200, 112], [0, 0, 1]]), -up)
    objects: list[Object3D] = []
    while len(objects) < count:
        z = rng.uniform(3, 12)
        center = np.array([rng.uniform(-0.4, 0.4) * z, rng.uniform(-0.3, 0.3) * z, z])
        box = Box3D(center, rng.uniform(0.5, 2, 3), rotation_y(rng.normal(size=3), up))
        bbox = projected_bbox(box, camera)
        if bbox is not None:
            name = _NAMES[len(objects) % len(_NAMES)]
            objects.append(Object3D(name, name, box, bbox, True))
    return Scene(SceneImage(f"bench-{seed}"), camera, tuple(objects), True, "bench")
