"""What a model says about pictures in its own words, and whether it names what is there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.evaluation.statistics import accuracy
from spatialllm_jax.inference.engine import Engine
from spatialllm_jax.inference.prompts import Prompt
from spatialllm_jax.questions.types import PROBING_TYPES
from spatialllm_jax.questions.wording import plural
from spatialllm_jax.scene.serialize import scene_from_json


def describe(engine: Engine, records: Sequence[ImageRecord], *, asked: int, max_new_tokens: int = 32,
             ) -> list[dict[str, Any]]:
    """Captions in stage 1's form, and the answer to one probing question for the first `asked` records.

    Returns:
        Per record: image, caption, reference (its stored caption, "" when it has none), setting, named
        (categories in it), and where one was asked: type, question, answer, expected.
    """
    captions = engine.generate([Prompt(r.image_id, r.image, "") for r in records], max_new_tokens=max_new_tokens)
    chosen = {}
    for index, record in enumerate(records[:asked]):
        # Types in turn, so that all of them are seen.
        wanted = PROBING_TYPES[index % len(PROBING_TYPES):] + PROBING_TYPES
        by_type = {q.type: q for q in reversed(record.questions)}
        question = next((by_type[name] for name in wanted if name in by_type), None)
        if question is not None:
            chosen[index] = question
    answers = engine.generate([Prompt(q.image, records[i].image, q.text) for i, q in chosen.items()],
                              max_new_tokens=max_new_tokens) if chosen else []
    said = dict(zip(chosen, answers, strict=True))
    result = []
    for index, (record, caption) in enumerate(zip(records, captions, strict=True)):
        reference = next((q.answer for q in record.questions if q.type == "caption"), "")
        scene = scene_from_json(record.scene) if record.scene else None
        entry: dict[str, Any] = {
            "image": record.image_id, "caption": caption, "reference": reference,
            "setting": scene.setting if scene else "",
            "named": sorted({o.category for o in scene.objects}) if scene else []}
        if index in chosen:
            question = chosen[index]
            entry |= {"type": question.type, "question": question.text, "answer": said[index],
                      "expected": question.answer}
        result.append(entry)
    return result


def naming(captions: Sequence[str], present: Sequence[Sequence[str]], settings: Sequence[str]) -> dict[str, Any]:
    """Do captions name what their own pictures hold?

    Args:
        captions: one per picture.
        present: categories in each picture.
        settings: where each picture was taken ("indoor", "outdoor"); telling rooms from streets earns nothing.

    Returns:
        "said": of all categories named, the share that is in the picture, its chance the mean share of the
        *other* pictures of the setting that hold them; "found": of all categories in pictures, the share that
        is named, its chance the mean share of the other captions in the setting that name them. Both as
        `statistics.Accuracy`.
    """
    vocabulary = sorted({category for held in present for category in held})
    named = [mentioned(caption, vocabulary) for caption in captions]
    held = [set(categories) for categories in present]

    def others(sets: Sequence[set[str]], index: int, category: str) -> float:
        rest = [found for k, found in enumerate(sets) if k != index and settings[k] == settings[index]]
        return sum(category in found for found in rest) / max(len(rest), 1)

    def compare(claims: Sequence[set[str]], truth: Sequence[set[str]]) -> dict[str, float | int]:
        pairs = [(index, category) for index, found in enumerate(claims) for category in sorted(found)]
        return accuracy([category in truth[index] for index, category in pairs],
                        [others(truth, index, category) for index, category in pairs]).as_dict()

    return {"said": compare(named, held), "found": compare(held, named)}


def mentioned(text: str, vocabulary: Sequence[str]) -> set[str]:
    """The categories that a text names, in the singular or plural; longer names first."""
    rest, found = text.lower(), set()
    for name in sorted(vocabulary, key=len, reverse=True):
        rest, count = re.subn(rf"\b(?:{re.escape(name)}|{re.escape(plural(name))})\b", "|", rest)
        if count:
            found.add(name)
    return found
