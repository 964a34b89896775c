"""Reading lengths, clock directions and short phrases from a generated answer: rules only, never a guess."""

from __future__ import annotations

import re

_METRES = {"mm": 0.001, "cm": 0.01, "m": 1.0, "km": 1000.0, "in": 0.0254, "ft": 0.3048, "yd": 0.9144}
_UNITS = {  # as written -> key of _METRES
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), "mm"),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), "cm"),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), "m"),
    **dict.fromkeys(("km", "kilometer", "kilometers", "kilometre", "kilometres"), "km"),
    **dict.fromkeys(("in", "inch", "inches", '"', "″"), "in"),
    **dict.fromkeys(("ft", "foot", "feet", "'", "′"), "ft"),
    **dict.fromkeys(("yd", "yard", "yards"), "yd"),
}
WORDS = {word: number for number, word in enumerate((
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"))}
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+|" + "|".join(WORDS) + r")"
# Longest spelling first; a letter after the unit makes it another word ("5 minutes"), as does "2 in front".
_UNIT = "|".join(sorted((unit for unit in _UNITS if unit.isalpha()), key=len, reverse=True))
_SIGN = "|".join(unit for unit in _UNITS if not unit.isalpha())
_LENGTH = re.compile(
    rf"(?<![\w.,\]'\"])(?P<number>{_NUMBER})"
    rf"(?:[\s-]*(?P<unit>{_UNIT})(?![A-Za-z\d])(?!(?<=in)\s+[a-z])|(?P<sign>{_SIGN}))"
    rf"|(?<=['′])(?P<inches>\d+(?:\.\d+)?)[\"″]", re.IGNORECASE)
_DENIED = re.compile(r"(?:\bnot|\bno|n't)\b[^.;]*$", re.IGNORECASE)
_RANGE = re.compile(rf"{_NUMBER}\s*(?:[-–—]|to|or|and)\s*$", re.IGNORECASE)
_CLOCK = re.compile(rf"(?<![\w:])(?P<hour>\d{{1,2}}|{'|'.join(WORDS)})(?::00)?\s*-?\s*o\s*['’`.]?\s*-?\s*clock",
                    re.IGNORECASE)
# How numbers are said that `parse_metres` leaves alone ("two and a half metres"), and labels, which are no quantities.
_WORTH = {**WORDS, "half": 0.5, "third": 1 / 3, "quarter": 0.25, "quarters": 0.25, "couple": 2, "dozen": 12,
          "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "hundred": 100, "thousand": 1000}
_SAID = re.compile(rf"(?P<figure>\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d*\.?\d+)|\b(?P<word>{'|'.join(_WORTH)})\b"
                   rf"|\ban?\s+(?:{_UNIT})\b", re.IGNORECASE)
_LABEL = re.compile(r"\bregions?\s*\[?\d+\]?|\[\d+\]", re.IGNORECASE)
_SPAN = re.compile(r"\d\s*(?:[-–—]|to|or)\s*\d", re.IGNORECASE)
_MOST_WORDS = 4     # of one number
_SAME = 0.02  # "1.2 meters (3.94 feet)": one length said twice, rounded

# Spatial457: what its answers are made of.
VOCABULARY: dict[str, tuple[str, ...]] = {
    "answer": ("yes", "no"),
    "size": ("small", "large"),
    "colour": ("gray", "blue", "purple", "brown", "green", "cyan", "red", "yellow"),
    "direction": ("left", "right", "front", "back"),
    "shape": ("airliner", "dirtbike", "road bike", "tandem bike", "suv", "wagon", "scooter", "mountain bike", "minivan",
              "sedan", "school bus", "fighter", "chopper", "double bus", "truck", "articulated bus", "cruiser", "jet",
              "utility bike", "regular bus", "biplane"),
}
_FIELD = re.compile(r"[\"'*]?\banswer\b[\"'*]*\s*[:=]\s*[\"'*]*([^\"'*,{}\n]+)", re.IGNORECASE)


def parse_metres(text: str) -> float | None:
    """The one length that a text gives, in metres; None when it gives none, several, a range, or one without a unit.

    The same length in two units, and feet followed by inches, count as one.
    """
    found: list[float] = []
    feet_end = -1
    for match in _LENGTH.finditer(text):
        unit = "in" if match["inches"] else _UNITS[(match["unit"] or match["sign"]).lower()]
        value = _value(match["inches"] or match["number"]) * _METRES[unit]
        between = text[feet_end:match.start()] if feet_end >= 0 else None
        if unit == "in" and between is not None and re.fullmatch(r"[\s,]*(?:and)?\s*", between):
            found[-1] += value
            feet_end = -1
            continue
        if _RANGE.search(text[:match.start()]) or _DENIED.search(text[:match.start()]):
            return None
        found.append(value)
        feet_end = match.end() if unit == "ft" else -1
    if not found or max(found) - min(found) > _SAME * max(found):
        return None
    return found[0]


def parse_clock(text: str) -> int | None:
    """The one clock direction (1 to 12) that a text gives: "2 o'clock", or nothing but a number."""
    bare = re.fullmatch(r"\W*(\d{1,2})\W*", text)
    if bare:
        return int(bare[1]) if 1 <= int(bare[1]) <= 12 else None
    hours = set()
    for match in _CLOCK.finditer(text):
        if _RANGE.search(text[:match.start()]):
            return None
        hours.add(int(_value(match["hour"])))
    hour = hours.pop() if len(hours) == 1 else None
    return hour if hour is not None and 1 <= hour <= 12 else None


def given_metres(number: float, unit: str, text: str) -> float | None:
    """A length that somebody else read in `text`, in metres; None where the text does not hold its number and unit, or
    holds a range."""
    kind, text = _UNITS.get(unit.strip().lower()), _LABEL.sub(" ", text)
    there = {_UNITS[sign.lower()] for sign in (
        *re.findall(rf"(?<![A-Za-z])(?:{_UNIT})(?![A-Za-z])(?!(?<=in)\s+[a-z])", text, re.IGNORECASE),
        *re.findall(rf"(?<=\d)(?:{_SIGN})", text))}
    said = not _SPAN.search(text) and any(abs(number - value) <= 1e-6 * value for value in _numbers(text))
    return number * _METRES[kind] if kind in there and said else None


def given_hour(hour: int, text: str) -> int | None:
    """A clock direction that somebody else read in `text`; None where that number does not stand there, or a range."""
    text = _LABEL.sub(" ", text)
    said = not _SPAN.search(text) and hour in {value for value, _ in _values(text)}
    return hour if said and 1 <= hour <= 12 else None


def _numbers(text: str) -> set[float]:
    """Every positive number that figures and words of a text can mean: what they are worth, and up to four neighbours
    added or multiplied ("two and a half", "three hundred"), figures with words alone."""
    found: set[float] = set()
    values = _values(text)
    for start in range(len(values)):
        ways = {(0.0, values[start][0])}        # what has been added up, and the last summand
        for k in range(start, min(start + _MOST_WORDS, len(values))):
            if k > start:
                if values[k][1] and values[k - 1][1]:
                    break
                ways = {way for total, last in ways for way in (
                    (total + last, values[k][0]), (total, last * values[k][0]))}
            found |= {total + last for total, last in ways}
    return {value for value in found if value > 0}


def _values(text: str) -> list[tuple[float, bool]]:
    """What each figure and number word of a text is worth, and whether it is a figure."""
    return [(float(match["figure"].replace(",", "")), True) if match["figure"] else
            (_WORTH[match["word"].lower()] if match["word"] else 1.0, False) for match in _SAID.finditer(text)]


def parse_phrase(text: str) -> str | None:
    """Spatial457's answer: the "Answer" field of the asked-for JSON, else a text that is nothing but an answer.

    Lower case. None for a text without the field that is none of the benchmark's words or a number up to 10.
    """
    fields = {_tidy(value) for value in _FIELD.findall(text)} - {""}
    if fields:
        return fields.pop() if len(fields) == 1 else None
    bare = _tidy(text)
    known = {word for words in VOCABULARY.values() for word in words} | set(WORDS) | {"none", "true", "false"}
    return bare if bare in known or (bare.isdecimal() and int(bare) <= 10) else None


def same_phrase(said: str, answer: str) -> bool:
    """Spatial457's published comparison: case aside; "none" and 0 mean no, a positive number means yes, numbers may be
    words, and sub-shapes of one category (suv, sedan) count as the same."""
    said, answer = (_canonical(text) for text in (said, answer))
    if said == answer:
        return True
    if answer in ("yes", "no") and said.isdecimal():
        return (int(said) > 0) == (answer == "yes")
    return _CATEGORY.get(said.split(" ")[0], said) == _CATEGORY.get(answer.split(" ")[0], answer)


_KINDS = {
    "car": ("suv", "wagon", "minivan", "sedan", "truck", "addi"),
    "bus": ("articulated", "regular", "double", "school"),
    "motorbike": ("chopper", "dirtbike", "scooter", "cruiser"),
    "aeroplane": ("jet", "fighter", "biplane", "airliner"),
    "bicycle": ("road", "utility", "mountain", "tandem"),
}
_CATEGORY = {word: kind for kind, words in _KINDS.items() for word in (*words, kind)}


def _canonical(text: str) -> str:
    text = _tidy(text)
    text = {"true": "yes", "false": "no", "none": "no"}.get(text, text)
    return str(WORDS[text]) if text in WORDS else text


def _tidy(text: str) -> str:
    return re.sub(r"[\"'*.]", "", text).strip().lower()


def _value(text: str) -> float:
    word = text.lower()
    return float(WORDS[word]) if word in WORDS else float(word.replace(",", ""))
