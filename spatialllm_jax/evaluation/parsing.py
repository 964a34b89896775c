"""Reading a generated answer: rules only, never a guess. What no rule reads is a parse failure."""

from __future__ import annotations

import re
from collections.abc import Sequence

# "B", "(b)", "b.", "B) the car", "**B**: the car": a letter, then the end or a delimiter.
_OPENING = re.compile(r"^[^\w\[]*([A-Za-z])(?:\s*$|\W*[.:,;)\]*])")
# "B the car": a capital that is no article or pronoun; counts only when the rest says the same.
_BARE = re.compile(r"^\W*([B-HJ-Z])\s+(?=\w)")
# "the answer is B", "option (b)", "choice: B."
_SAID = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*[\"'*]*"
                   r"(?:\(([A-Za-z])\)|([A-Za-z])(?=\s*$|[\"'*]*[.,;:)])"
                   r"|([B-HJ-Z])(?=\s))", re.IGNORECASE)
_BRACKETED = re.compile(r"\(([A-Za-z])\)")
_CAPITAL = re.compile(r"(?<![\w'])([A-Z])(?![\w'])(?!\s+[a-z])")
_LABEL = re.compile(r"\[(\d+)\]|\bregion\s+(\d+)\b", re.IGNORECASE)
_NEGATION = re.compile(r"\b(?:not|no|neither|nor|never|cannot|unable)\b|n't\b", re.IGNORECASE)
_FILLERS = re.compile(r"\b(?:the|a|an|it|is|its|side)\b")
# How region-grounded data opens its verdicts: "Indeed, Region [0] is taller", "In fact, it is shorter".
_AGREES = re.compile(r"\W*(?:(?:yes|indeed|correct|true)\b|that(?:'s| is) (?:true|correct)\b)", re.IGNORECASE)
_DENIES = re.compile(r"\W*(?:(?:no|incorrect|false|in fact|actually)\b|that(?:'s| is) (?:false|incorrect|not)\b)",
                     re.IGNORECASE)


def _plain(text: str) -> str:
    """Lower case without punctuation and fillers; without only punctuation where nothing else is left."""
    bare = " ".join(re.sub(r"[^\w\s\[\].]|\.(?!\d)", " ", re.sub(r"'s\b", " ", text.lower())).split())
    return " ".join(_FILLERS.sub(" ", bare).split()) or bare


def parse_choice(answer: str, options: Sequence[str]) -> int | None:
    """Index of the option that `answer` names, or None when that cannot be read from it.

    The whole answer may be an option's text (articles, case and punctuation aside). Where the options are a yes
    and a no, the word that the answer opens with decides. Else letters ("B",
    "(b)", "B. the car", "the answer is B"), options' texts and their region labels are collected, and the
    answer counts when all of them mean the same option. A text that is negated names nothing.
    """
    text = answer.strip()
    if not text:
        return None
    plain = [_plain(option) for option in options]
    exact = [index for index, option in enumerate(plain) if option == _plain(text)]
    if exact:
        return exact[0] if len(exact) == 1 else None
    if sorted(option.split()[0] for option in plain if option) == ["no", "yes"]:
        opening = re.match(r"\W*(yes|no)\b(?:\W+(?:and|or|but))?(\W+(?:yes|no)\b)?", text, re.IGNORECASE)
        if opening:  # what follows the word repeats the claim or its denial
            return None if opening.group(2) else [option.split()[0] for option in plain].index(opening.group(1).lower())
    letters = _letters(text)
    if any(index >= len(options) for index in letters):
        return None
    named, rest = _named(text, plain)
    named |= _labelled(text, options)
    if _NEGATION.search(rest):
        named = set()
        letters = {index for index in letters if _OPENING.match(text) or _SAID.search(text)}
    bare = _BARE.match(text)
    if bare and named and not letters:
        letters = {ord(bare.group(1)) - ord("A")}
    found = letters | named
    return found.pop() if len(found) == 1 else None


def parse_claim(answer: str) -> int | None:
    """0 when an answer agrees with what was asked, 1 when it denies it, None when its opening tells neither.

    SpatialRGPT's own answers open with yes, indeed, correct, or with no, incorrect, in fact, actually.
    """
    text = answer.strip()
    agrees, denies = _AGREES.match(text), _DENIES.match(text)
    if not agrees and not denies:
        return parse_choice(text, ("Yes", "No"))
    opening = agrees or denies
    rest = text[opening.end():] if opening else ""
    # "Yes and no", "Actually, yes": an opening that is taken back at once names neither.
    other = _DENIES if agrees else _AGREES
    return None if other.match(re.sub(r"^\W*(?:and|or|but)\b", "", rest)) else 0 if agrees else 1


def _letters(text: str) -> set[int]:
    """Indices of the letters that the answer gives as its choice."""
    opening = _OPENING.match(text)
    found = {opening.group(1)} if opening else set()
    for match in _SAID.finditer(text):
        bare = match.group(3)
        if bare is None or bare.isupper():  # "answer is b car" is no choice of a letter
            found.add(match.group(1) or match.group(2) or bare)
    found |= set(_BRACKETED.findall(text))
    if found:  # "A, B" and "(A) or B" choose two
        found |= set(_CAPITAL.findall(text)) - {"I"}
    return {ord(letter.lower()) - ord("a") for letter in found}


def _named(text: str, plain: Sequence[str]) -> tuple[set[int], str]:
    """Options whose text stands in the answer, and the answer without them.

    Longest first, so that "left" is not found in "top left". Single letters are no texts, single digits are.
    """
    rest, found = _plain(re.sub(r"n't\b", " not", text)), set()
    for index in sorted(range(len(plain)), key=lambda index: -len(plain[index])):
        if len(plain[index]) > 1 or plain[index].isdecimal():
            rest, count = re.subn(rf"(?<![\w.\[]){re.escape(plain[index])}(?!\w|\.\d|\])", " | ", rest)
            if count:
                found.add(index)
    return found, rest


def _labelled(text: str, options: Sequence[str]) -> set[int]:
    """Options whose region label is mentioned, where each option has one of its own."""
    labels = [{a or b for a, b in _LABEL.findall(option)} for option in options]
    if any(len(own) != 1 for own in labels) or len(set.union(*labels)) != len(options):
        return set()
    said = {a or b for a, b in _LABEL.findall(text)}
    return {index for index, own in enumerate(labels) if own & said}
