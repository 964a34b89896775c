"""The dataset card: what is in a dataset, counted while it is written."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.questions.balance import answer_key
from spatialllm_jax.questions.types import Question

_MANY = 12
_SHOWN = 40
# Keys of a card that have a place of their own in CARD.md.
_PARTS = ("name", "splits", "settings", "ignored", "left_out", "short", "sources", "licences")


class CardCounter:
    """Counts records as they stream by; memory does not grow with their number."""

    def __init__(self) -> None:
        self._images: Counter[str] = Counter()
        self._counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._answers: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))

    def add(self, split: str, record: ImageRecord) -> None:
        """Counts one record."""
        self._images[split] += 1
        for question in record.questions:
            self._counts[split, "types"][question.type] += 1
            self._counts[split, "sources"][question.source] += 1
            self._counts[split, "forms"][question.form] += 1
            self._counts[split, "categories"].update(region.phrase for region in question.regions)
            if question.answer_index is None:
                continue
            self._answers[split][question.type][answer_key(question)] += 1
            if question.form != "which":
                self._answers[split][f"{question.type}, {question.form}"][spoken_answer(question)] += 1

    def result(self) -> dict[str, Any]:
        """Per split: images, questions, questions per type, source and form, mentions per category, answers."""
        return {
            split: {
                "images": images,
                "questions": sum(self._counts[split, "types"].values()),
                **{key: dict(sorted(self._counts[split, key].items()))
                   for key in ("types", "sources", "forms", "categories")},
                "answers": {
                    kind: dict(sorted(counts.items()))
                    for kind, counts in sorted(self._answers[split].items())
                    if len(counts) <= _MANY
                },
            }
            for split, images in self._images.items()
        }


def spoken_answer(question: Question) -> str:
    """The word or letter that the answer begins with: "A", "Yes"."""
    return question.answer.split(",")[0].split(".")[0]


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Writes card.json and CARD.md."""
    (folder / "card.json").write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
    (folder / "CARD.md").write_text(card_markdown(card))


def card_markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    lines = [f"# Dataset {card['name']}", ""]
    lines += [f"- {key}: {value}" for key, value in sorted(card.items()) if key not in _PARTS]
    for licence in card.get("licences", ()):
        lines.append(f"- licence: {licence}")
    for split, counts in card["splits"].items():
        lines += _split(split, counts)
        lines += _listing("Scenes from:", [
            f"{source['kind']} {source['name']}: {_sum_up(source)}"
            for source in card.get("sources", {}).get(split, ())])
        lines += _listing("Quotas that its scenes could not fill:", _pairs(card.get("short", {}).get(split, {})))
        lines += _listing("Pictures left out:", _pairs(card.get("left_out", {}).get(split, {})))
    lines += _listing("## Annotations left out", _pairs(card.get("ignored", {})))
    if card.get("settings"):
        settings = json.dumps(card["settings"], indent=1, sort_keys=True)
        lines += ["", "## Settings", "", "```json", settings, "```"]
    return "\n".join(lines) + "\n"


def _split(split: str, counts: Mapping[str, Any]) -> list[str]:
    lines = ["", f"## {split}: {counts['images']} images, {counts['questions']} questions", ""]
    lines += ["| type | questions | answers |", "|---|---|---|"]
    for kind, number in counts["types"].items():
        lines.append(f"| {kind} | {number} | {_words(counts['answers'].get(kind, {}))} |")
    # How the answers of a form read, over all wordings: the right letter, yes or no.
    for kind, answers in counts["answers"].items():
        if ", " in kind:
            lines.append(f"| {kind} | {sum(answers.values())} | {_words(answers)} |")
    lines += ["", "Questions by source: " + _words(counts["sources"]),
              "", "Questions by form: " + _words(counts["forms"])]
    common = sorted(counts["categories"].items(), key=lambda item: (-item[1], item[0]))
    shown = _words(dict(common[:_SHOWN])) + (f", and {len(common) - _SHOWN} more" if len(common) > _SHOWN else "")
    return [*lines, "", "Objects asked about: " + (shown or "none")]


def _sum_up(source: Mapping[str, Any]) -> str:
    if source["scenes"] is None:
        return "as many as it takes"
    return f"{source['scenes']} scenes ({_words(source['contents'])})"


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _pairs(counts: Mapping[str, int]) -> list[str]:
    return [f"{reason}: {count}" for reason, count in sorted(counts.items())]


def _listing(title: str, items: list[str]) -> list[str]:
    return ["", title, "", *(f"- {item}" for item in items)] if items else []
