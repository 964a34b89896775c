"""Putting a case into words: its form, a paraphrase, references, options and the answer.

Forms: "which" asks openly; "choice" lists options and wants a letter; "yes_no" makes a claim, right or wrong
with even odds, to confirm or deny. A type without the form that was drawn is asked openly.
"""

from __future__ import annotations

import numpy as np

from spatialllm_jax.questions import wording
from spatialllm_jax.questions.candidates import Case, View
from spatialllm_jax.questions.config import QuestionConfig
from spatialllm_jax.questions.labels import number
from spatialllm_jax.questions.references import Reference, refer
from spatialllm_jax.questions.types import Question, group_of

# Roles of a type's objects, in their order; "abc" unless listed.
_ROLES = {"closer_to_object": "cab", "facing_object": "cab"}
# Options listed for a letter; more candidates than that are thinned out at random.
_MOST_OPTIONS = 6


def put(case: Case, view: View, question_id: str, known: dict[int, str]) -> Question:
    """The question of a case.

    Args:
        known: labels of the conversation so far (`labels.number`); grows.
    """
    config, rng = view.config, view.rng
    form, wrong = _form(case, config, rng)
    template = wording.choose(case.type, config.register, form, config.paraphrases, rng)
    claim = _claim(case, rng) if form == "yes_no" else None
    objects = dict(zip(_ROLES.get(case.type, "abc"), case.objects, strict=False))
    if claim is not None and case.values[0] is None:
        objects["x"], objects["y"] = case.objects[-2 + claim], case.objects[-1 - claim]
    mentioned = dict.fromkeys(objects[role] for role in wording.mentions(template[0]) if role in objects)
    labels = number([*mentioned, *(i for i in case.objects if i not in mentioned)], config.region_labels, known)
    references, regions = refer(view.names, case.objects, config, labels, case.noun)
    by_object = dict(zip(case.objects, references, strict=True))
    fields = {role: by_object[i].text for role, i in objects.items()} | _claimed_word(case, claim)
    if case.subject:
        fields["a"] = case.subject

    question = wording.fill(template[0], **fields)
    words = _words(case, references, config)
    options: tuple[str, ...] = ()
    right = case.right
    if form == "yes_no":
        options = tuple(wording.fill(sentence, **fields) for sentence in template[1:])
        right = 0 if claim == case.right else 1
        text = options[right]
    elif form == "choice":
        question, options, right = _listed(question, words or [case.text, *wrong], 0 if wrong else right, rng)
        text = options[right] if right is not None else ""
    elif words:
        options = tuple(_sentence(template[1], case.type, word, fields) for word in words)
        text = options[right] if right is not None else _sentence(template[1], case.type, case.text, fields)
    else:
        text = _sentence(template[1], case.type, case.text, fields)
    return Question(
        id=question_id,
        image=view.scene.image.id,
        type=case.type,
        group=group_of(case.type),
        source=view.scene.source,
        turns=((question, text),),
        regions=regions,
        region_style=config.region_style,
        options=options,
        answer_index=right,
        quantities=case.quantities,
        margin=case.margin,
        form=form,
        claim="" if claim is None else (case.values[claim] or ("first", "second")[claim]),
    )


def _form(case: Case, config: QuestionConfig, rng: np.random.Generator) -> tuple[str, list[str]]:
    """(form, wrong answers for a choice among numbers). Nothing is drawn where the config has one form."""
    form = config.draw_form(rng)
    if form == "yes_no" and case.type in wording.CLAIMED:
        return form, []
    if form == "choice" and case.values:
        return form, []
    if form == "choice" and case.wrong is not None and (wrong := case.wrong(rng)):
        return form, wrong
    return "which", []


def _claim(case: Case, rng: np.random.Generator) -> int:
    """Index of the value to claim: the right one with even odds, else one of the others."""
    others = [k for k in range(len(case.values)) if k != case.right]
    if case.right is not None and rng.random() < 0.5:
        return case.right
    return others[int(rng.integers(len(others)))] if len(others) > 1 else others[0]


def _claimed_word(case: Case, claim: int | None) -> dict[str, str]:
    """{x} and {place} of a claim about words; those about objects have them already."""
    value = None if claim is None else case.values[claim]
    if value is None:
        return {}
    return {"x": wording.SPOKEN.get(case.type, {}).get(value, value), "place": wording.PLACES_OF.get(value, value)}


def _words(case: Case, references: list[Reference], config: QuestionConfig) -> list[str]:
    """The candidate answers as they are said; [] for free-form answers."""
    full = config.register == "full"
    if case.values and case.values[0] is None:
        return [(r.text if full else r.short) for r in references[-len(case.values):]]
    spoken = wording.SPOKEN.get(case.type, {}) if full else {}
    return [spoken.get(str(value), str(value)) for value in case.values]


def _sentence(template: str, kind: str, word: str, fields: dict[str, str]) -> str:
    return wording.fill(template, **fields, x=word, **wording.grammar(kind, word))


def _listed(question: str, words: list[str], right: int | None, rng: np.random.Generator
            ) -> tuple[str, tuple[str, ...], int | None]:
    """(question with its options below, letters, index of the right one), options in random order."""
    order = rng.permutation(len(words)).tolist()
    if len(order) > _MOST_OPTIONS and right is not None:
        others = [k for k in order if k != right][: _MOST_OPTIONS - 1]
        order = [k for k in order if k == right or k in others]
    lines = [f"{wording.LETTERS[k]}. {words[index]}" for k, index in enumerate(order)]
    letters = tuple(wording.LETTERS[: len(order)])
    return "\n".join([question, *lines, wording.LETTER_PROMPT]), letters, None if right is None else order.index(right)
