"""Which of the sampled questions a dataset keeps: even answers, exact numbers, no picture twice."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from spatialllm_jax.data.duplicates import NearIndex
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.balance import BALANCED, Balancer, answer_key
from spatialllm_jax.questions.build import FAMILIES
from spatialllm_jax.questions.labels import family_of
from spatialllm_jax.questions.types import Question


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """How a split chooses.

    Attributes:
        quotas: question type -> number to keep, spread evenly over its answers; types that are missing are not
            kept. Empty for no such limit.
        questions: most questions in all; 0 for no limit.
        category_slack: how uneven a category's answers may be (`questions.balance.Balancer`).
        near_duplicates: two pictures whose fingerprints differ in at most this many of 64 bits count as one and
            stay out of two splits; 0 to not look (rendered scenes are disjoint by their seeds).
        keep_empty: whether pictures without a kept question are written.
    """

    quotas: Mapping[str, int] = dataclasses.field(default_factory=dict)
    questions: int = 0
    category_slack: int = 2
    near_duplicates: int = 4
    keep_empty: bool = False

    @property
    def target(self) -> int:
        """How many questions there will be; 0 when only the scenes limit them."""
        wanted = [n for n in (sum(self.quotas.values()), self.questions) if n > 0]
        return min(wanted, default=0)


def selection_config(split: str, settings: Mapping[str, Any]) -> SelectionConfig:
    """A `SelectionConfig` from a split's plain settings; raises UserError for a quota of an unknown type."""
    fields = {f.name for f in dataclasses.fields(SelectionConfig)}
    chosen = {key: value for key, value in settings.items() if key in fields}
    quotas = dict(chosen.get("quotas") or {})
    for kind, number in quotas.items():
        if kind not in FAMILIES or number < 0:
            raise UserError(f"quota {kind}={number} of split {split!r} is not a number of questions of a known type; "
                            f"types are {', '.join(FAMILIES)}")
    if chosen.get("questions", 0) < 0 or not 0 <= chosen.get("near_duplicates", 0) <= 16:
        raise UserError(f"split {split!r}: questions must not be negative and near_duplicates must be 0 to 16 bits")
    return SelectionConfig(**{**chosen, "quotas": quotas})


def answer_caps(kind: str, quota: int) -> dict[str, int]:
    """How many of a type's quota each answer gets: even, the first ones take what does not divide."""
    answers = BALANCED.get(kind)
    if not answers:
        return {}
    return {answer: quota // len(answers) + (k < quota % len(answers)) for k, answer in enumerate(answers)}


class Pictures:
    """Every picture seen in any split, by id and by fingerprint."""

    def __init__(self, distance: int) -> None:
        self._ids: dict[str, str] = {}
        self._near = NearIndex(distance)

    def add(self, split: str, image_id: str, value: int | None) -> None:
        """Remembers a picture of a split (or of a dataset that must stay apart)."""
        self._ids[image_id] = split
        if value is not None:
            self._near.add(value, split)

    def clash(self, split: str, image_id: str, value: int | None) -> str | None:
        """Why a picture must be left out of `split`, or None."""
        owner = self._ids.get(image_id)
        if owner is not None:
            return "image: id is taken" if owner == split else f"image: also in {owner}"
        owner = self._near.find(value) if value is not None else None
        return f"image: near-duplicate of one in {owner}" if owner not in (None, split) else None


class Selector:
    """Takes the records of one split in order and keeps what its config allows.

    What it keeps depends on the order of the records alone, so it is the same for any number of workers.

    Args:
        last: whether no split comes after this one, which would have to keep clear of its pictures.
    """

    def __init__(self, split: str, config: SelectionConfig, pictures: Pictures, last: bool = False) -> None:
        self._split, self._config, self._pictures, self._last = split, config, pictures, last
        self._balancer = Balancer(category_slack=config.category_slack)
        self._caps = {kind: answer_caps(kind, quota) for kind, quota in config.quotas.items()}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._types: Counter[str] = Counter()
        self.kept = 0
        self.left_out: Counter[str] = Counter()

    @property
    def full(self) -> bool:
        """Whether no further question can be kept."""
        quotas, limit = self._config.quotas, self._config.questions
        return (bool(quotas) and all(self._types[kind] >= n for kind, n in quotas.items())) or 0 < limit <= self.kept

    def take(self, record: ImageRecord, value: int | None) -> ImageRecord | None:
        """The record with the questions to keep, or None when it is left out whole.

        Args:
            value: the picture's fingerprint, or None when none was made.
        """
        clash = self._pictures.clash(self._split, record.image_id, value)
        if clash is not None:
            self.left_out[clash] += 1
            return None
        kept = tuple(q for q in record.questions if self._keep(q))
        if not kept and not self._config.keep_empty:
            self.left_out["image: no question to keep"] += 1
            return None
        self._pictures.add(self._split, record.image_id, None if self._last else value)
        return dataclasses.replace(record, questions=kept)

    def _keep(self, question: Question) -> bool:
        kind, quotas, limit = question.type, self._config.quotas, self._config.questions
        if 0 < limit <= self.kept:
            return False
        key = ""
        if quotas:
            key = answer_key(question) if self._caps.get(kind) else ""
            cap = self._caps.get(kind, {}).get(key, quotas.get(kind, 0))
            if self._types[kind] >= quotas.get(kind, 0) or self._counts[kind, key] >= cap:
                return False
        if not self._balancer.keep(question, family_of(question)):
            return False
        self._counts[kind, key] += 1
        self._types[kind] += 1
        self.kept += 1
        return True

    def shortages(self) -> dict[str, int]:
        """Questions that the quotas still lack, by type and answer."""
        missing: dict[str, int] = {}
        for kind, quota in self._config.quotas.items():
            for answer, cap in (self._caps[kind] or {"": quota}).items():
                lack = cap - self._counts[kind, answer]
                if lack > 0:
                    missing[f"{kind}: {answer}" if answer else kind] = lack
        return missing
