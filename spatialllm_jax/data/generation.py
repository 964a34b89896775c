"""Scenes to datasets: parallel over processes, the same bytes for any number of them.

Workers take chunks of scene indices and return records with all sampled questions; the main process
receives the chunks in order, chooses (`data.selection`) and writes. What a scene becomes depends on
(seed, split, its place in the order) alone.
"""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from spatialllm_jax.data import duplicates
from spatialllm_jax.data.duplicates import fingerprint, fingerprint_line, read_fingerprints
from spatialllm_jax.data.images import image_size
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.selection import Pictures, SelectionConfig, Selector
from spatialllm_jax.data.storage import write_dataset
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.build import generate_questions, question_rng
from spatialllm_jax.questions.config import QuestionConfig
from spatialllm_jax.questions.labels import renumber
from spatialllm_jax.scene.relations import scene_arrays
from spatialllm_jax.scene.serialize import scene_to_json
from spatialllm_jax.scene.types import Scene
from spatialllm_jax.sources.sources import SceneSource

_CHUNK = 16
# Chunks under way at a time: enough for every worker, few enough to stay in memory.
_AHEAD = 24
# Scenes of an endless source that are looked at for a number of questions, at most.
_ENDLESS = 2_000_000
# Splits that have the first claim on a picture.
_FIRST = ("test", "val")


@dataclasses.dataclass(frozen=True)
class SplitPlan:
    """Where a split's scenes come from and what is asked about them.

    Attributes:
        name: of the split.
        sources: scenes are drawn from all of them, in one fixed order (`scene_order`).
        seed: of the order and of the questions.
        count: most scenes to look at; 0 for all there are, or as many as the selection needs.
        families: question families, in order.
        selection: which questions are kept.
        even_sources: every source contributes alike as long as it lasts; otherwise by its size.
    """

    name: str
    sources: tuple[SceneSource, ...]
    seed: int
    count: int
    families: tuple[QuestionConfig, ...]
    selection: SelectionConfig = dataclasses.field(default_factory=SelectionConfig)
    even_sources: bool = False

    def settings(self) -> dict[str, Any]:
        """Everything the split depends on, JSON-ready."""
        return {**dataclasses.asdict(dataclasses.replace(self, sources=())),
                "sources": [source.settings() for source in self.sources]}


class Made(NamedTuple):
    """A record with all sampled questions, and its picture's fingerprint (None when not asked for)."""

    record: ImageRecord
    fingerprint: int | None


def scene_order(plan: SplitPlan) -> Int[np.ndarray, "n 2"]:
    """(source, scene) numbers in the order in which a split looks at them.

    Annotated scenes come shuffled, so that neighbours in a video are apart and any beginning of the order is a
    sample of the whole; rendered ones are random already. Sources take turns in proportion to their sizes, or
    evenly.

    Raises:
        UserError: when an endless source has no count to stop at.
    """
    endless = any(source.count is None for source in plan.sources)
    if endless and plan.count <= 0 and not plan.selection.target:
        raise UserError(f"split {plan.name!r} takes rendered scenes without end; give it a --count")
    parts, times = [], []
    for k, source in enumerate(plan.sources):
        size = (plan.count or _ENDLESS) if source.count is None else source.count
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((plan.seed, k, 0x5CE7E))))
        scenes = np.arange(size) if source.count is None else rng.permutation(size)
        parts.append(np.stack([np.full(size, k), scenes], axis=1))
        # An item's turn: evenly spaced through [0, 1) by size, or one per round.
        times.append(np.arange(size) + 0.5 if plan.even_sources else (np.arange(size) + 0.5) / size)
    order = np.argsort(np.concatenate(times), kind="stable")
    found = np.concatenate(parts)[order]
    return found[: plan.count] if plan.count > 0 else found


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


def records(plan: SplitPlan, order: Int[np.ndarray, "n 2"], start: int) -> list[Made]:
    """What the scenes `order` become, `start` being the first one's place in the whole order."""
    scenes = itertools.chain.from_iterable(
        plan.sources[k].scenes([scene for _, scene in run])
        for k, run in itertools.groupby(order.tolist(), key=lambda item: item[0]))
    near = plan.selection.near_duplicates > 0
    made = []
    for k, scene in enumerate(scenes):
        record = record_of(scene, plan.families, plan.seed, start + k)
        made.append(Made(record, fingerprint(record.image, scene.image.path or scene.image.id) if near else None))
    return made


def stream(plan: SplitPlan, selector: Selector, pool: concurrent.futures.Executor | None, progress: bool = True
           ) -> Iterator[Made]:
    """The records a split keeps, in order; worked out in `pool`, or here when it is None. Ends when it is full."""
    order = scene_order(plan)
    target = plan.selection.target
    conversations = {family.name for family in plan.families if family.region_labels == "conversation"}
    unit, total = ("question", target) if target else ("scene", len(order))
    with tqdm(total=total, desc=plan.name, unit=unit, disable=not progress) as bar:
        for batch in _in_order(plan, order, pool):
            before = selector.kept
            for made in batch:
                record = selector.take(*made)
                if record is not None:
                    # What was dropped has left gaps in the numbers of the marks.
                    kept = renumber(record.questions, conversations)
                    yield Made(dataclasses.replace(record, questions=kept), made.fingerprint)
                if selector.full:
                    return
            bar.update(selector.kept - before if target else len(batch))


def _in_order(plan: SplitPlan, order: Int[np.ndarray, "n 2"], pool: concurrent.futures.Executor | None
              ) -> Iterator[list[Made]]:
    chunks = iter([(order[start : start + _CHUNK], start) for start in range(0, len(order), _CHUNK)])
    if pool is None:
        for chunk, start in chunks:
            yield records(plan, chunk, start)
        return
    pending: collections.deque[concurrent.futures.Future[list[Made]]] = collections.deque()
    try:
        while True:
            while len(pending) < _AHEAD and (following := next(chunks, None)) is not None:
                pending.append(pool.submit(records, plan, *following))
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
    exclude: Sequence[Path] = (),
    extras: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Writes a dataset, or returns the card of the one that is there if it has the same settings.

    Splits are written test first, so that a picture that could be in several is tested on, never trained on.

    Args:
        card: must hold "settings": JSON-ready and complete; two runs with equal settings are the same
            dataset.
        exclude: datasets whose pictures stay out of this one, near-duplicates included.
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
    pictures = Pictures(max(plan.selection.near_duplicates for plan in plans))
    for other in exclude:
        for image_id, value in read_fingerprints(other):
            pictures.add(other.name, image_id, value)
    plans = sorted(plans, key=lambda plan: plan.name not in _FIRST)
    selectors = {plan.name: Selector(plan.name, plan.selection, pictures, plan is plans[-1]) for plan in plans}

    def split(plan: SplitPlan, pool: concurrent.futures.Executor | None) -> Iterator[ImageRecord]:
        for record, value in stream(plan, selectors[plan.name], pool, progress):
            if value is not None:
                lines.write(fingerprint_line(plan.name, record.image_id, value))
            yield record

    def more(partial: Path) -> dict[str, Any]:
        if lines.tell():
            lines.seek(0)
            with (partial / duplicates.FILE).open("w") as file:
                shutil.copyfileobj(lines, file)
        return {"left_out": {n: dict(s.left_out) for n, s in selectors.items() if s.left_out},
                "short": {n: s.shortages() for n, s in selectors.items() if s.shortages()}}

    few = sum(plan.count or _ENDLESS for plan in plans) <= 2 * _CHUNK
    # Fingerprints wait on disk: a list of a million would not be small.
    with contextlib.ExitStack() as stack, tempfile.TemporaryFile("w+") as lines:
        pool = None if workers <= 1 or few else stack.enter_context(worker_pool(workers))
        splits = {plan.name: split(plan, pool) for plan in plans}
        return write_dataset(folder, name, splits, card, overwrite=overwrite, findings=more, extras=extras)


def worker_pool(workers: int) -> concurrent.futures.ProcessPoolExecutor:
    """Processes that may render, and that end with this one however it ends."""
    # Spawned, not forked: an OpenGL context does not survive a fork.
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_watch_parent, initargs=(os.getpid(),))


def _card(folder: Path) -> dict[str, Any] | None:
    try:
        result: dict[str, Any] = json.loads((folder / "card.json").read_text())
        return result
    except (OSError, ValueError):
        return None
