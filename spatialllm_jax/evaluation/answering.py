"""The one loop of all benchmarks: items in, lines of predictions out, a batch at a time; what is there is not asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from spatialllm_jax.data import images
from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation import predictions
from spatialllm_jax.evaluation.endpoints import Reply
from spatialllm_jax.evaluation.items import Item, Skipped
from spatialllm_jax.inference.prompts import Picture, Prompt

_NAME = "of it"         # of a question's picture, in sentences about the question
_KEPT_BYTES = 1 << 29   # of pictures that have been made into arrays


class Answerer(Protocol):
    """What answers: an `Engine`, which makes pictures into arrays (`pixels`) and can score, or an `Endpoint`."""

    def generate(self, prompts: Sequence[Prompt], /, *, max_new_tokens: int = 64) -> Sequence[str]: ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a benchmark is answered.

    Attributes:
        mode: "score" chooses the likeliest option; "generate" reads the model's own words.
        blind: blank every picture, which measures what text alone gives away.
        chunk: items that are asked, and written, at once.
        max_skipped: so many rows may be unfit, and so many prompts fail, before the run stops.
        max_new_tokens, row_length: see `Engine.generate` and `Engine.score`.
    """

    mode: str
    blind: bool = False
    chunk: int = 256
    max_skipped: int = 10
    max_new_tokens: int = 32
    row_length: int = 512


@dataclasses.dataclass
class Outcome:
    """All lines of a run in the benchmark's order, the rows that were skipped, and failed prompts with the reason."""

    lines: list[dict[str, Any]]
    skipped: list[Skipped]
    failed: list[Skipped]


def answer_all(items: Iterable[Item | Skipped], model: Answerer, file: Path, plan: Plan, *,
               show_progress: bool = False) -> Outcome:
    """Answers every item that `file` has no line of, and adds the lines to it batch by batch.

    Raises:
        UserError: more than `plan.max_skipped` rows are unfit or prompts failed, or `file` holds answers to other
            questions. What has been answered stays in the file.
    """
    predictions.mend(file)
    known = {line["id"]: line for line in predictions.read(file)} if file.exists() else {}
    order: dict[str, None] = {}
    outcome = Outcome([], [], [])
    pending: list[Item] = []
    pictures = _Pictures(model, plan)

    def ask() -> None:
        part, pending[:] = pending[:], []
        if part:
            lines, failed = _answered(part, model, plan, pictures)
            predictions.append(file, lines)
            known.update((line["id"], line) for line in lines)
            outcome.failed += failed
            if refused := next((entry.why for entry in failed if entry.final), None):
                raise UserError(refused)

    def stop_at(found: list[Skipped], what: str) -> None:
        if len(found) > plan.max_skipped:
            raise UserError(f"{found[-1]}; that makes {len(found)} {what}, more than --max-skipped {plan.max_skipped}; "
                            f"mend it or allow more (answers so far are in {file}, the same command goes on)")

    for entry in tqdm(items, desc="blind" if plan.blind else "questions", unit="q", disable=not show_progress):
        unfit = entry if isinstance(entry, Skipped) else _unfit(entry, order, known, pictures)
        if unfit is not None:
            outcome.skipped.append(unfit)
            if len(outcome.skipped) > plan.max_skipped:
                ask()
            stop_at(outcome.skipped, "skipped rows")
            continue
        assert isinstance(entry, Item)
        order[entry.id] = None
        if entry.id in known:
            if known[entry.id]["prompt"] != entry.prompt:
                raise UserError(f"{file} answers another question under the id {entry.id!r}; choose another --out")
            continue
        # Questions about one picture stay together: it is encoded once for all of them.
        if len(pending) >= 4 * plan.chunk or (
                len(pending) >= plan.chunk and pending[-1].image_id != entry.image_id):
            ask()
            stop_at(outcome.failed, "unanswered questions")
        pending.append(entry)
    ask()
    stop_at(outcome.failed, "unanswered questions")
    if not order:
        raise UserError(f"no question can be asked: {outcome.skipped[0] if outcome.skipped else 'it is empty'}")
    outcome.lines = [known[identity] for identity in order if identity in known]
    return outcome


class _Pictures:
    """Whether pictures are any. What an engine makes of them is kept until it is asked, decoded once for both."""

    def __init__(self, model: Any, plan: Plan):
        self._plan, self._sound = plan, set[str]()
        self._pixels: Callable[[Prompt], np.ndarray] | None = getattr(model, "pixels", None)
        self._stored = getattr(model, "features", None) is not None
        self._kept: dict[Picture | None, np.ndarray] = {}

    def check(self, item: Item) -> None:
        """Raises `images.ImageError` for one that is none."""
        if self._plan.blind:
            return
        for one in _prompt(item, self._plan).each:
            if one.image is None or one.image_id in self._sound:
                continue
            if self._pixels is None or (self._stored and not one.marks):      # features are read, not pixels
                images.decode(one.image, _NAME)
            else:
                pixels = self._pixels(dataclasses.replace(one, image_id=_NAME))
                if sum(array.nbytes for array in self._kept.values()) < _KEPT_BYTES:
                    self._kept[one.picture] = pixels
            self._sound.add(one.image_id)

    def taken(self, prompts: Sequence[Prompt]) -> dict[Picture | None, np.ndarray]:
        """What is kept of these prompts' pictures, and is kept no longer."""
        distinct = dict.fromkeys(picture for prompt in prompts for picture in prompt.pictures)
        return {picture: self._kept.pop(picture) for picture in distinct if picture in self._kept}


def _unfit(item: Item, order: dict[str, None], known: dict[str, Any], pictures: _Pictures) -> Skipped | None:
    """Why an item cannot be asked, None when it can."""
    where = f"question {item.id}"
    if item.id in order:
        return Skipped(where, "its id has been used before")
    if item.id in known:
        return None
    try:
        pictures.check(item)
    except images.ImageError as error:
        return Skipped(where, str(error))
    return None


def _prompt(item: Item, plan: Plan) -> Prompt:
    (name, image), *more = ((name, None if plan.blind else image) for name, image in item.pictures)
    return Prompt(name, image, item.text, item.candidates if plan.mode == "score" else (),
                  () if plan.blind else item.marks, more=tuple(more))


def _answered(items: Sequence[Item], model: Any, plan: Plan, pictures: _Pictures,
              ) -> tuple[list[dict[str, Any]], list[Skipped]]:
    prompts = [_prompt(item, plan) for item in items]
    pixels = pictures.taken(prompts)
    known = {"pixels": pixels} if pixels else {}
    if plan.mode == "score":
        scores = model.score(prompts, row_length=plan.row_length, **known)
        return [predictions.line_of(item, "", np.asarray(values).tolist())
                for item, values in zip(items, scores, strict=True)], []
    lines, failed = [], []
    answers = model.generate(prompts, max_new_tokens=plan.max_new_tokens, **known)
    for item, text in zip(items, answers, strict=True):
        if isinstance(text, Reply) and text.failure:
            failed.append(Skipped(f"question {item.id}", text.failure, text.fatal))
            continue
        usage = (text.input_tokens, text.output_tokens) if isinstance(text, Reply) else ()
        lines.append(predictions.line_of(item, str(text), usage=usage))
    return lines, failed
