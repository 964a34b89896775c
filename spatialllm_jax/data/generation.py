"""Scenes to datasets: parallel over processes, the same bytes for any number of them.

Workers take chunks of scene indices and return records with all sampled questions; the main process
receives the chunks in order, evens out the answers and writes. What a scene becomes depends on
(seed, split, index) alone.
"""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spatialllm_jax.data.images import image_size
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.storage import write_dataset
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.balance import Balancer
from spatialllm_jax.questions.build import generate_questions, question_rng
from spatialllm_jax.questions.config import QuestionConfig
from spatialllm_jax.scene.relations import scene_arrays
from spatialllm_jax.scene.serialize import scene_to_json
from spatialllm_jax.scene.types import Scene
from spatialllm_jax.sources import sources

_CHUNK = 16
# Chunks under way at a time: enough for every worker, few enough to stay in memory.
_AHEAD = 24


@dataclasses.dataclass(frozen=True)
class SplitPlan:
    """Where a split's scenes come from and what is asked about them.

    Attributes:
        name: of the split.
        kind, path, thresholds, render: arguments of `sources.scenes`.
        scene_seed: stream of the scenes; splits have different ones, so their scenes are disjoint.
        question_seed: of the questions.
        count: number of scenes.
        families: question families, in order.
        category_slack: how uneven a category's answers may be; see `questions.balance.Balancer`.
    """

    name: str
    kind: str
    path: str | None
    thresholds: str
    render: Mapping[str, Any]
    scene_seed: int
    question_seed: int
    count: int
    families: tuple[QuestionConfig, ...]
    category_slack: int = 2


def record_of(scene: Scene, families: tuple[QuestionConfig, ...], seed: int, index: int) -> ImageRecord:
    """A scene with the questions of all families; images that are not pictures raise UserError."""
    arrays = scene_arrays(scene)
    questions = [
        question
        for stream, family in enumerate(families)
        for question in generate_questions(scene, family, question_rng(seed, index, stream), arrays)
    ]
    encoded = scene.image.read()
    width, height = image_size(encoded, scene.image.path or scene.image.id)
    if (width, height) != (scene.camera.width, scene.camera.height):
        raise UserError(
            f"image {scene.image.path or scene.image.id} is {width}x{height} but its annotation says "
            f"{scene.camera.width}x{scene.camera.height}; use the images that the annotations belong to"
        )
    return ImageRecord(scene.image.id, encoded, width, height, tuple(questions), scene_to_json(scene))


def records(plan: SplitPlan, start: int, count: int) -> list[ImageRecord]:
    """Records of scenes `start` to `start + count - 1` of a split, before balancing."""
    found = sources.scenes(
        plan.kind, plan.path, plan.thresholds, plan.render, plan.scene_seed, start, count
    )
    return [
        record_of(scene, plan.families, plan.question_seed, start + k) for k, scene in enumerate(found)
    ]


def stream(plan: SplitPlan, pool: concurrent.futures.Executor | None, progress: bool = True) -> Iterator[ImageRecord]:
    """The balanced records of a split, in order; worked out in `pool`, or here when it is None."""
    balancer = Balancer(category_slack=plan.category_slack)
    with tqdm(total=plan.count, desc=plan.name, unit="scene", disable=not progress) as bar:
        for batch in _in_order(plan, pool):
            for record in batch:
                kept = tuple(q for q in record.questions if balancer.keep(q, q.id.rsplit("/", 2)[-2]))
                yield dataclasses.replace(record, questions=kept)
            bar.update(len(batch))


def _in_order(plan: SplitPlan, pool: concurrent.futures.Executor | None) -> Iterator[list[ImageRecord]]:
    chunks = iter([(start, min(_CHUNK, plan.count - start)) for start in range(0, plan.count, _CHUNK)])
    if pool is None:
        for start, count in chunks:
            yield records(plan, start, count)
        return
    pending: collections.deque[concurrent.futures.Future[list[ImageRecord]]] = collections.deque()
    try:
        while True:
            while len(pending) < _AHEAD and (chunk := next(chunks, None)) is not None:
                pending.append(pool.submit(records, plan, *chunk))
            if not pending:
                return
            yield pending.popleft().result()
    except concurrent.futures.process.BrokenProcessPool:
        raise UserError("a worker process ended unexpectedly (out of memory?); use fewer --workers") from None
    finally:
        for future in pending:
            future.cancel()


def _watch_parent(parent: int) -> None:
    """Ends a worker whose parent was killed, so that no process is left behind."""
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def generate(
    folder: Path,
    name: str,
    plans: list[SplitPlan],
    card: Mapping[str, Any],
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = True,
    extras: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Writes a dataset, or returns the card of the one that is there if it has the same settings.

    Args:
        card: must hold "settings": JSON-ready and complete; two runs with equal settings are the same
            dataset.
        extras: called with the folder before it gets its name, to add other formats.

    Returns:
        The card, with "reused": True when nothing had to be written.
    """
    existing = _card(folder)
    settings = json.loads(json.dumps(card["settings"]))
    if existing is not None and existing.get("settings") == settings:
        return {**existing, "reused": True}
    if folder.exists() and not overwrite:
        what = "a dataset with other settings" if existing is not None else "something else"
        raise UserError(f"{folder} holds {what}; choose another folder or pass --overwrite")
    few = sum(plan.count for plan in plans) <= 2 * _CHUNK
    with contextlib.ExitStack() as stack:
        pool = None if workers <= 1 or few else stack.enter_context(_pool(workers))
        splits = {plan.name: stream(plan, pool, progress) for plan in plans}
        return write_dataset(folder, name, splits, card, overwrite=overwrite, extras=extras)


def _pool(workers: int) -> concurrent.futures.ProcessPoolExecutor:
    # Spawned, not forked: an OpenGL context does not survive a fork.
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_watch_parent, initargs=(os.getpid(),))


def _card(folder: Path) -> dict[str, Any] | None:
    try:
        result: dict[str, Any] = json.loads((folder / "card.json").read_text())
        return result
    except (OSError, ValueError):
        return None
