"""Reading a generated answer: rules only, never a guess. What no rule reads is a parse failure."""

from __future__ import annotations

import re
from collections.abc import Sequence

_LETTER = re.compile(r"^\W*(?:option\s+|answer\s*(?:is)?\s*:?\s*)?\(?([a-z])\)?(?:[\s.:,)].*)?$",
                     re.IGNORECASE | re.DOTALL)
_SAID = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*\(?([A-Za-z])\)?(?=$|[\s.,;:)])", re.IGNORECASE)
_MARKED = re.compile(r"\(([A-Za-z])\)")


def _plain(text: str) -> str:
    text = re.sub(r"[^\w\s\[\]]", " ", text.lower())
    text = re.sub(r"\b(the|a|an|it|is|its|side)\b", " ", text)
    return " ".join(text.split())


def parse_choice(answer: str, options: Sequence[str]) -> int | None:
    """Index of the option that `answer` names, or None when that cannot be read from it.

    In order: the option's own text (whole answer); a letter alone ("B", "(b)", "B. the car"); "the answer is
    B"; exactly one option's text inside the answer. Two different options named is a failure.
    """
    said = _plain(answer)
    if not said and not answer.strip():
        return None
    plain = [_plain(option) for option in options]
    exact = [index for index, option in enumerate(plain) if option and option == said]
    if len(exact) == 1:
        return exact[0]
    letters = {index for pattern in (_SAID, _MARKED) for match in pattern.finditer(answer)
               if (index := ord(match.group(1).lower()) - ord("a")) < len(options)}
    if len(letters) == 1:
        return letters.pop()
    if letters:
        return None
    alone = _LETTER.match(answer.strip())
    if alone and (len(answer.strip()) <= 2 or not alone.group(1).islower() or answer.strip()[0] == "("):
        index = ord(alone.group(1).lower()) - ord("a")
        rest = _plain(answer.strip()[answer.strip().find(alone.group(1)) + 1:])
        if index < len(options) and (not rest or rest == plain[index] or plain[index] in rest):
            return index
    found = {index for index, option in enumerate(plain)
             if option and re.search(rf"(?<!\w){re.escape(option)}(?!\w)", said)}
    # An option inside a longer one that was named ("left" in "top left") does not count by itself.
    found = {i for i in found if not any(j != i and j in found and plain[i] in plain[j] and
                                         len(plain[j]) > len(plain[i]) for j in found)}
    return found.pop() if len(found) == 1 else None
