"""An optional judge: a language model that reads answers which no rule could. Off unless asked for, counted apart.

It is shown the question, the options and the answer, never which option is right or how long a thing is, and may say
that the answer says nothing. What it read is checked by rules: a letter that is an option's, a length whose number and
unit stand in the answer, an hour that does. Anything else is nonsense, which is counted and read as nothing. Every
verdict is kept in `judge.jsonl`, so that scoring again asks nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation import predictions, quantities, rules
from spatialllm_jax.evaluation.endpoints import Reply
from spatialllm_jax.inference.prompts import Prompt
from spatialllm_jax.questions.wording import LETTERS

_CHOICE = ("Someone answered a multiple-choice question about a picture in their own words. Which option does the "
           "answer choose? Do not solve the question; only say what the answer says.\n\nQuestion: {question}\n"
           "Options:\n{options}\nAnswer: {answer}\n\nReply with one letter, "
           "or with NONE when the answer chooses no option or several.")
_METRES = ("Someone answered a question about a length in a picture in their own words. Which one length does the "
           "answer give? Do not solve the question and convert nothing; only say what the answer says.\n\n"
           "Question: {question}\nAnswer: {answer}\n\nReply with JSON alone, such as "
           '{{"number": 2.5, "unit": "feet"}}, or with NONE when the answer gives no length, several different ones or '
           "a range, or a number without a unit.")
_CLOCK = ("Someone answered a question about a clock direction in a picture in their own words. Which one hour does "
          "the answer give? Do not solve the question; only say what the answer says.\n\n"
          "Question: {question}\nAnswer: {answer}\n\nReply with JSON alone, such as "
          '{{"hour": 3}}, or with NONE when the answer gives no hour or several.')
_ASK = {**dict.fromkeys(rules.CHOICES, _CHOICE), "metres": _METRES, "clock": _CLOCK}
_COUNTS = ("asked", "read", "right", "nonsense", "failed")
_BATCH = 16


class Model(Protocol):
    """What judges: `endpoints.Endpoint`, or anything that speaks like it."""

    def generate(self, prompts: Sequence[Prompt], /, *, max_new_tokens: int = 64) -> Sequence[str]: ...


class _Nonsense(Exception):
    """A verdict that is none."""


def judged(lines: Sequence[Mapping[str, Any]], model: Model, name: str, cache: Path) -> dict[str, Any]:
    """What a judge makes of the answers that could not be read.

    Args:
        name: of the judge, part of what verdicts are kept under.
        cache: `judge.jsonl`.

    Returns:
        "asked", "read" (an option, a length or an hour was named), "right" (by the rules' own thresholds), "nonsense"
        (verdicts that are none), "failed" (no verdict; asked again next time); "by_rule" with the same counts; and
        "overall": the share of right answers when the judge's verdicts count, beside which the rules' own stays the
        score.
    """
    unread = [line for line in lines if line["right"] is not None and not rules.was_read(line) and line["rule"] in _ASK]
    verdicts = _verdicts(unread, model, name, cache)
    counts = {rule: dict.fromkeys(_COUNTS, 0) for rule in sorted({line["rule"] for line in unread})}
    for line in unread:
        count, verdict = counts[line["rule"]], verdicts.get(line["id"])
        count["asked"] += 1
        if verdict is None:
            count["failed"] += 1
            continue
        try:
            read = _read(verdict, line)
        except _Nonsense:
            count["nonsense"] += 1
            continue
        if read is not None:
            count["read"] += 1
            count["right"] += bool(rules.RULES[line["rule"]].right(read, line))
    total = {key: sum(count[key] for count in counts.values()) for key in _COUNTS}
    scored = [line for line in lines if line["right"] is not None]
    right = sum(bool(line["right"]) for line in scored) + total["right"]
    return {"judge": name, **total, "overall": right / len(scored) if scored else 0.0, "by_rule": counts}


def _verdicts(unread: Sequence[Mapping[str, Any]], model: Model, name: str, cache: Path) -> dict[str, str]:
    """What the judge said of each line, by id: kept before, or said now."""
    predictions.mend(cache)
    known = {entry["key"]: entry["verdict"] for entry in _entries(cache)}
    texts = {line["id"]: _ASK[line["rule"]].format(question=line["prompt"], answer=line["raw"], options="\n".join(
        f"{letter}. {option}" for letter, option in zip(LETTERS, line["options"], strict=False))) for line in unread}
    keys = {identity: hashlib.sha256(f"{name}\n{text}".encode()).hexdigest() for identity, text in texts.items()}
    missing = [identity for identity, key in keys.items() if key not in known]
    for start in range(0, len(missing), _BATCH):
        part = missing[start:start + _BATCH]
        said = model.generate([Prompt("", b"", texts[identity]) for identity in part], max_new_tokens=32)
        found = [{"key": keys[identity], "id": identity, "judge": name, "verdict": str(reply)}
                 for identity, reply in zip(part, said, strict=True)
                 if not (isinstance(reply, Reply) and reply.failure)]
        predictions.append(cache, found)
        if refused := next((reply.failure for reply in said if isinstance(reply, Reply) and reply.fatal), None):
            raise UserError(f"the judge: {refused}")
        known |= {entry["key"]: entry["verdict"] for entry in found}
    return {identity: known[key] for identity, key in keys.items() if key in known}


def _read(verdict: str, line: Mapping[str, Any]) -> Any:
    """What a verdict says that the answer says, as the line's rule would have read it; None for nothing.

    Nothing but the letter, or the JSON: a judge that argues has not judged.
    """
    word = verdict.strip().strip(".()").upper()
    if word == "NONE":
        return None
    if line["rule"] in rules.CHOICES:
        if len(word) != 1 or word not in LETTERS[:len(line["options"])]:
            raise _Nonsense
        return LETTERS.index(word)
    said = _object(verdict)
    if line["rule"] == "metres":
        number, unit = said.pop("number", None), said.pop("unit", None)
        fits = isinstance(number, int | float) and not isinstance(number, bool) and isinstance(unit, str) and not said
        read: float | None = quantities.given_metres(number, unit, line["raw"]) if fits else None
    else:
        hour = said.pop("hour", None)
        read = quantities.given_hour(hour, line["raw"]) if type(hour) is int and not said else None
    if read is None:
        raise _Nonsense
    return read


def _object(text: str) -> dict[str, Any]:
    """The JSON object that is all of a text, but for a fence around it."""
    fenced = re.fullmatch(r"\s*(?:```(?:json)?\s*)?(\{[^{}]*\})\s*(?:```)?\s*", text)
    try:
        return dict(json.loads(fenced[1])) if fenced else {}
    except ValueError:
        return {}


def _entries(cache: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in cache.read_text().splitlines()] if cache.exists() else []
