"""Choosing a wording and filling it in; the tables themselves are in `questions.phrases`."""

from __future__ import annotations

import functools
import re

import numpy as np

from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.phrases import claims, general, probing, short, spatial, view

# (question, answer), or (question, yes, no) for a claim.
Template = tuple[str, ...]

FULL: dict[str, tuple[Template, ...]] = {**spatial.FULL, **probing.FULL, **view.FULL, **general.FULL}
SHORT: dict[str, tuple[Template, ...]] = {
    kind: tuple((question, "{x}") for question in table) for kind, table in short.SHORT.items()
}
FULL_CLAIMS: dict[str, tuple[Template, ...]] = dict(claims.CLAIMS)
SHORT_CLAIMS: dict[str, tuple[Template, ...]] = {
    kind: tuple((question, "yes", "no") for question in table) for kind, table in short.CLAIMS.items()
}
# Types with claims to confirm or deny.
CLAIMED = tuple(claims.CLAIMS)

# How a sentence says an answer; where the bare answer is asked for (short register), it is the key itself.
SPOKEN: dict[str, dict[str, str]] = {
    "same_direction": {"same": "the same direction", "different": "different directions"},
    "view_front_behind": {"front": "in front of", "behind": "behind"},
}
# A side before a noun: "behind the car".
PLACES_OF = {"front": "in front of", "left": "to the left of", "back": "behind", "right": "to the right of"}
LETTERS = "ABCDEFGHIJ"
LETTER_PROMPT = "Answer with the option's letter from the given choices directly."
# Azimuths every 45 degrees from the front towards the object's left.
AZIMUTH_WORDS = ("front", "front left", "left", "back left", "back", "back right", "right", "front right")
CELLS = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PLACES = {"indoor": "in a room", "outdoor": "on a street"}
_IRREGULAR = {"person": "people", "bus": "buses", "sheep": "sheep", "child": "children", "shelf": "shelves"}


def choose(kind: str, register: str, form: str, paraphrases: int, rng: np.random.Generator) -> Template:
    """A template of a type, among its first `paraphrases` (0 = all) wordings: see `Template`.

    Nothing is drawn where there is one only. Raises UserError for a type without wording.
    """
    if form == "yes_no":
        tables = FULL_CLAIMS if register == "full" else SHORT_CLAIMS
    else:
        tables = FULL if register == "full" else SHORT
    table = tables.get(kind)
    if table is None:
        raise UserError(f"question type {kind!r} has no wording; choose from {', '.join(tables)}")
    count = min(paraphrases, len(table)) if paraphrases > 0 else len(table)
    return table[int(rng.integers(count))] if count > 1 else table[0]


@functools.lru_cache(maxsize=4096)
def mentions(template: str) -> tuple[str, ...]:
    """The fields of a template in order of first mention, in lower case: ("c", "a", "b")."""
    return tuple(dict.fromkeys(field.lower() for field in re.findall(r"\{(\w+)\}", template)))


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def fill(template: str, **fields: str) -> str:
    """Fills {a}, {b} ... and their capitals {A}, {B} ..."""
    capitals = {key.upper(): capital(value) for key, value in fields.items()}
    return template.format(**fields, **capitals)


def grammar(kind: str, word: str) -> dict[str, str]:
    """{an} and {are} of a general type's answer: "an armchair", "is" for "one"."""
    if kind == "what":
        return {"an": article(word)}
    return {"are": "is" if word == "one" else "are"} if kind == "count" else {}


def article(noun: str) -> str:
    """ "a car", "an armchair"."""
    return ("an " if noun[:1].lower() in "aeiou" else "a ") + noun


def plural(noun: str) -> str:
    """The plural of the last word: "red cars", "people", "buses"."""
    head, _, last = noun.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{head} {last}" if head else last


def listing(items: list[str]) -> str:
    """ "a car, a dog and a bed"."""
    if len(items) <= 1:
        return "".join(items)
    return ", ".join(items[:-1]) + " and " + items[-1]


def metres(value: float, step: float = 0.0, like: float | None = None) -> str:
    """A length as people say it: centimeters below 1 m, 0.1 m below 10 m, 1 m above; or in `step`s.

    With `like`, as precisely as a length of that size is said.
    """
    if step > 0:
        return f"{round(value / step) * step:g} m"
    size = value if like is None else like
    if size < 0.995:
        return _with_unit(f"{value * 100:.0f}", "centimeter")
    return _with_unit(f"{value:.1f}" if size < 9.95 else f"{value:.0f}", "meter")


def _with_unit(number: str, unit: str) -> str:
    return f"{number} {unit}" if number == "1" else f"{number} {unit}s"
