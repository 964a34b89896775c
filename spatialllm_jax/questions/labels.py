"""The numbers of marked regions: per question, per image, or over a conversation about an image."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Sequence

from spatialllm_jax.questions.types import Question

REGION_LABELS = ("mention", "image", "conversation")
_NUMBER = re.compile(r"\[(\d+)\]")


def number(mentioned: Sequence[int], style: str, known: dict[int, str]) -> dict[int, str]:
    """Object -> label.

    Args:
        mentioned: the question's objects in order of mention.
        style: "mention" counts within the question, "image" takes the object's index in the scene, and
            "conversation" counts in order of first mention over all questions that share `known`.
        known: labels of the conversation so far; grows.
    """
    if style == "image":
        return {i: str(i) for i in mentioned}
    if style == "conversation":
        return {i: known.setdefault(i, str(len(known))) for i in mentioned}
    return {i: str(position) for position, i in enumerate(mentioned)}


def renumber(questions: Iterable[Question], families: Collection[str]) -> tuple[Question, ...]:
    """Closes the gaps that dropped questions leave in a conversation's labels, per family.

    Balance drops questions after they were numbered. Labels of the questions left are counted anew from 0
    in order of mention; questions of other families, and those without drawn marks, pass through.

    Args:
        questions: about one image, in order.
        families: names of the families with `region_labels="conversation"`.
    """
    counted: dict[str, dict[str, str]] = {}
    result = []
    for question in questions:
        family = family_of(question)
        if family in families and question.region_style == "mark":
            known = counted.setdefault(family, {})
            for label in (*_NUMBER.findall(question.text), *(r.label for r in question.regions)):
                known.setdefault(label, str(len(known)))
            question = _relabelled(question, known)
        result.append(question)
    return tuple(result)


def _relabelled(question: Question, new: dict[str, str]) -> Question:
    if all(new.get(r.label, r.label) == r.label for r in question.regions):
        return question

    def put(text: str) -> str:
        return _NUMBER.sub(lambda found: f"[{new.get(found[1], found[1])}]", text)

    return dataclasses.replace(
        question,
        turns=tuple((put(user), put(assistant)) for user, assistant in question.turns),
        options=tuple(put(option) for option in question.options),
        regions=tuple(dataclasses.replace(r, label=new.get(r.label, r.label)) for r in question.regions),
    )


def family_of(question: Question) -> str:
    """The family's name, from the id "image/family/number"."""
    parts = question.id.rsplit("/", 2)
    return parts[-2] if len(parts) >= 2 else ""


def subject_of(question: Question) -> tuple[object, ...] | None:
    """What a question is about, whatever its form and wording; None without regions.

    Two questions with the same subject tell each other's answer: (type, the anchor, the others in any order).
    """
    if not question.regions:
        return None
    boxes = [r.bbox for r in question.regions]
    if question.type == "on_which_side":
        return (question.type, *boxes)
    anchor, others = (boxes[:1], boxes[1:]) if len(boxes) > 2 else ([], boxes)
    return (question.type, *anchor, frozenset(others))
