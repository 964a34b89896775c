"""Reads questions and answers back as a person would: what is asked, what is claimed, what is said.

Nothing here looks at the tables that write sentences. Objects are found by their marks, coordinates or names
and replaced by ⟨0⟩, ⟨1⟩ ... in the order of the question's regions; what is left is read word by word.
"""

from __future__ import annotations

import re

from spatialllm_jax.questions.types import Question, Region

TWO_WAY = ("closer_to_camera", "closer_to_object", "facing_object", "higher")
WORDS: dict[str, tuple[str, ...]] = {
    "facing_camera": ("front", "left", "back", "right", "top", "bottom"),
    "on_which_side": ("front", "left", "back", "right"),
    "same_direction": ("same", "different"),
    "view_left_right": ("left", "right"),
    "view_above_below": ("above", "below"),
    "view_front_behind": ("front", "behind"),
    "left_right": ("left", "right"),
    "presence": ("yes", "no"),
    "azimuth": ("front", "front left", "left", "back left", "back", "back right", "right", "front right"),
    "where": ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"),
}
# Types whose two objects are told apart by the words around them, and the answer seen from the other one.
_TURNED = {"left": "right", "right": "left", "above": "below", "below": "above", "front": "behind", "behind": "front"}
_RELATIVE = ("view_left_right", "view_above_below", "view_front_behind", "left_right", "on_which_side")
_SYNONYMS = {
    "on_which_side": {"behind": "back"},
    "same_direction": {"similar": "same", "alike": "same"},
}
# Comparatives by which the object that is asked for, or claimed, wins or loses.
_WINS = {
    "closer_to_camera": r"closer|nearer|shorter|smaller",
    "closer_to_object": r"closer|nearer|shorter|smaller",
    "higher": r"higher|greater",
    "facing_object": r"fac(?:e|es|ing)|towards|point|head|front",
}
_LOSES = {
    "closer_to_camera": r"farther|further|longer|larger|farthest",
    "closer_to_object": r"farther|further|longer|larger|farthest",
    "higher": r"lower|smaller",
    "facing_object": r"away from|back of",
}
_MARK = re.compile(r"⟨(\d)⟩")
_NOT = re.compile(r"\bnot\b|n't\b", re.IGNORECASE)


def token(region: Region, style: str) -> str:
    """What identifies a region in a text: its label, its coordinates or its name."""
    if style == "mark":
        return f"[{region.label}]"
    if style == "text":
        return "[" + ", ".join(f"{v:.2f}" for v in region.bbox) + "]"
    return region.phrase


def masked(text: str, question: Question) -> str:
    """The text with every reference to a region, its name included, replaced by ⟨its position⟩."""
    # Longest first, so that "bus" does not match within "school bus".
    tokens = [(token(region, question.region_style), region.phrase, k) for k, region in enumerate(question.regions)]
    for found, phrase, k in sorted(tokens, key=lambda item: -len(item[0])):
        lead = "" if question.region_style == "name" else rf"(?:{re.escape(phrase)}\s+)?(?:in Region\s+|at\s+)?"
        text = re.sub(rf"(?<!\w)(?:the\s+)?{lead}{re.escape(found)}(?!\w)", f"⟨{k}⟩", text, flags=re.IGNORECASE)
    return text


def stated_answer(question: Question) -> str | None:
    """The answer that the text gives, as `balance.answer_key` names it; None where it is free-form or unclear.

    For a claim of two values that is settled by "no" as well; for one of several, "no" leaves it open: None.
    """
    if question.form == "yes_no":
        left = said_of_claim(question)
        return next(iter(left)) if left is not None and len(left) == 1 else None
    asked, answer = masked(_question(question), question), masked(full_answer(question), question)
    if question.type in TWO_WAY:
        found = _candidates(answer, question)
        if len(found) != 1 or not _asks_about_both(asked, question):
            return None
        return _winner(found[0], asked, question)
    if question.type in WORDS:
        return _value(answer, asked, question)
    return None


def claimed(question: Question) -> str | None:
    """The answer that the question's own text claims, or None when it cannot be made out."""
    return _claim(masked(_question(question), question), question)


def values(question: Question) -> tuple[str, ...]:
    """All answers a question of this type may have."""
    return ("first", "second") if question.type in TWO_WAY else WORDS[question.type]


def said_of_claim(question: Question, answer: str | None = None) -> set[str] | None:
    """The answers that are left after a "yes" or "no" and what follows it; None when it contradicts itself."""
    text = question.answer if answer is None else answer
    word = re.match(r"\s*(yes|no)\b[,.:]?\s*", text, re.IGNORECASE)
    claim, everything = claimed(question), set(values(question))
    if word is None or claim is None:
        return None
    yes = word[1].lower() == "yes"
    meant = {claim} if yes else everything - {claim}
    rest = masked(text[word.end():], question)
    if not rest.strip():
        return meant
    said = _claim(rest, question, masked(_question(question), question))
    if said is None:
        return None
    stated = everything - {said} if _NOT.search(rest) else {said}
    return stated if stated <= meant else None


def _claim(text: str, question: Question, context: str = "") -> str | None:
    """The answer that a statement or a closed question puts forward; `context` is asked when it names no object."""
    if question.type in TWO_WAY:
        found = _candidates(text, question)
        return _winner(found[0], text, question) if found else None
    return _value(text, context, question)


def _winner(position: int, text: str, question: Question) -> str | None:
    """Who wins when the object at `position` is said, or asked, to be closer, farther, higher ..."""
    wins = re.search(rf"\b(?:{_WINS[question.type]})", text, re.IGNORECASE) is not None
    loses = re.search(rf"\b(?:{_LOSES[question.type]})", text, re.IGNORECASE) is not None
    if wins == loses:
        return None
    first = position == len(question.regions) - 2
    return "first" if first == wins else "second"


def _candidates(text: str, question: Question) -> list[int]:
    """The objects compared (the last two regions) in order of first mention."""
    last = len(question.regions) - 2
    return list(dict.fromkeys(int(k) for k in _MARK.findall(text) if int(k) >= last))


def _asks_about_both(text: str, question: Question) -> bool:
    """Whether the question offers the last two objects, "⟨1⟩ or ⟨2⟩", and no other."""
    pairs = re.findall(r"⟨(\d)⟩,? (?:or|and) ⟨(\d)⟩", text)
    last = len(question.regions)
    return [{int(a), int(b)} for a, b in pairs] == [{last - 2, last - 1}]


def _value(text: str, context: str, question: Question) -> str | None:
    """The one word of the type's vocabulary that a text holds, as said of the question's first object."""
    plain = _MARK.sub("", text)
    for other, word in _SYNONYMS.get(question.type, {}).items():
        plain = re.sub(rf"\b{other}\b", word, plain, flags=re.IGNORECASE)
    # Longest first: "front left" is neither "front" nor "left".
    options = "|".join(sorted(WORDS[question.type], key=len, reverse=True))
    found = {word.lower() for word in re.findall(rf"\b(?:{options})\b", plain, re.IGNORECASE)}
    if len(found) != 1:
        return None
    word = found.pop()
    if question.type not in _RELATIVE:
        return word
    reference = _reference(text)
    if reference is None:
        reference = _reference(context)
    if question.type == "on_which_side":
        return word if reference == 0 else None
    if reference is None:
        return None
    return word if reference == 1 else _TURNED[word]


def _reference(text: str) -> int | None:
    """The object that another is compared with: "left of ⟨1⟩", "behind ⟨1⟩", "compared with ⟨1⟩"."""
    found = set(re.findall(r"\b(?:of|than|with|below|behind|above|from|at|way) ⟨(\d)⟩", text, re.IGNORECASE))
    return int(found.pop()) if len(found) == 1 else None


def _question(question: Question) -> str:
    """The question without a list of options."""
    return question.text.split("\n")[0]


def full_answer(question: Question) -> str:
    """The answer, with a letter replaced by the option that the question lists under it."""
    if len(question.answer) == 1 and "\nA. " in question.text:
        for line in question.text.split("\n"):
            if line.startswith(f"{question.answer}. "):
                return line[3:]
    return question.answer


def full_options(question: Question) -> list[str]:
    """The options as they are listed below the question, or as the assistant would say them."""
    if question.form == "choice":
        return [line[3:] for line in question.text.split("\n") if re.match(r"[A-J]\. ", line)]
    return list(question.options)
