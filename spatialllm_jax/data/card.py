"""The dataset card: what is in a dataset, counted while it is written."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.questions.balance import answer_key

_MANY = 12


class CardCounter:
    """Counts records as they stream by; memory does not grow with their number."""

    def __init__(self) -> None:
        self._images: Counter[str] = Counter()
        self._types: dict[str, Counter[str]] = defaultdict(Counter)
        self._sources: dict[str, Counter[str]] = defaultdict(Counter)
        self._answers: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))

    def add(self, split: str, record: ImageRecord) -> None:
        """Counts one record."""
        self._images[split] += 1
        for question in record.questions:
            self._types[split][question.type] += 1
            self._sources[split][question.source] += 1
            if question.answer_index is not None:
                self._answers[split][question.type][answer_key(question)] += 1

    def result(self) -> dict[str, Any]:
        """Per split: images, questions, questions per type and source, answers per type."""
        return {
            split: {
                "images": images,
                "questions": sum(self._types[split].values()),
                "types": dict(sorted(self._types[split].items())),
                "sources": dict(sorted(self._sources[split].items())),
                "answers": {
                    kind: dict(sorted(counts.items()))
                    for kind, counts in sorted(self._answers[split].items())
                    if len(counts) <= _MANY
                },
            }
            for split, images in self._images.items()
        }


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Writes card.json and CARD.md."""
    (folder / "card.json").write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
    (folder / "CARD.md").write_text(card_markdown(card))


def card_markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    lines = [f"# Dataset {card['name']}", ""]
    for key, value in sorted(card.items()):
        if key not in ("name", "splits", "settings", "ignored"):
            lines.append(f"- {key}: {value}")
    for split, counts in card["splits"].items():
        lines += ["", f"## {split}: {counts['images']} images, {counts['questions']} questions", ""]
        lines += ["| type | questions | answers |", "|---|---|---|"]
        for kind, number in counts["types"].items():
            answers = counts["answers"].get(kind, {})
            shown = ", ".join(f"{answer} {count}" for answer, count in answers.items())
            lines.append(f"| {kind} | {number} | {shown} |")
        lines.append("")
        lines.append("Sources: " + ", ".join(f"{name} ({n})" for name, n in counts["sources"].items()))
    if card.get("ignored"):
        lines += ["", "## Annotations left out", ""]
        lines += [f"- {reason}: {count}" for reason, count in sorted(card["ignored"].items())]
    if card.get("settings"):
        settings = json.dumps(card["settings"], indent=1, sort_keys=True)
        lines += ["", "## Settings", "", "```json", settings, "```"]
    return "\n".join(lines) + "\n"
