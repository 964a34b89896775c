"""An optional judge: a language model that reads answers which no rule could. Off unless asked for, counted apart.

It is shown the question, the options and the answer, never which option is right, and may say that none was chosen.
Every verdict is kept in `judge.jsonl`, so that scoring again asks nothing twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation import predictions, rules
from spatialllm_jax.evaluation.endpoints import Reply
from spatialllm_jax.inference.prompts import Prompt
from spatialllm_jax.questions.wording import LETTERS

_ASK = ("Someone answered a multiple-choice question about a picture in their own words. Which option does the answer "
        "choose? Do not solve the question; only say what the answer says.\n\nQuestion: {question}\n"
        "Options:\n{options}\nAnswer: {answer}\n\nReply with one letter, "
        "or with NONE when the answer chooses no option or several.")
_BATCH = 16


class Model(Protocol):
    """What judges: `endpoints.Endpoint`, or anything that speaks like it."""

    def generate(self, prompts: Sequence[Prompt], /, *, max_new_tokens: int = 64) -> Sequence[str]: ...


def judged(lines: Sequence[Mapping[str, Any]], model: Model, name: str, cache: Path) -> dict[str, Any]:
    """What a judge makes of the answers that could not be read.

    Args:
        name: of the judge, part of what verdicts are kept under.
        cache: `judge.jsonl`.

    Returns:
        "asked", "read" (an option was named), "right", "failed" (no verdict; asked again next time), and "overall": the
        share of right answers when the judge's verdicts count, beside which the rules' own stays the score.
    """
    unread = [line for line in lines if line["right"] is not None and not rules.was_read(line)
              and line["rule"] in rules.CHOICES]
    predictions.mend(cache)
    known = {entry["key"]: entry["verdict"] for entry in _entries(cache)}
    texts = {line["id"]: _ASK.format(question=line["prompt"], answer=line["raw"], options="\n".join(
        f"{letter}. {option}" for letter, option in zip(LETTERS, line["options"], strict=False))) for line in unread}
    keys = {identity: hashlib.sha256(f"{name}\n{text}".encode()).hexdigest() for identity, text in texts.items()}
    missing = [line["id"] for line in unread if keys[line["id"]] not in known]
    for start in range(0, len(missing), _BATCH):
        part = missing[start:start + _BATCH]
        said = model.generate([Prompt("", b"", texts[identity]) for identity in part], max_new_tokens=8)
        found = [{"key": keys[identity], "id": identity, "judge": name, "verdict": str(reply)}
                 for identity, reply in zip(part, said, strict=True)
                 if not (isinstance(reply, Reply) and reply.failure)]
        predictions.append(cache, found)
        if refused := next((reply.failure for reply in said if isinstance(reply, Reply) and reply.fatal), None):
            raise UserError(f"the judge: {refused}")
        known |= {entry["key"]: entry["verdict"] for entry in found}
    read = right = failed = 0
    for line in unread:
        verdict = known.get(keys[line["id"]])
        failed += verdict is None
        # Nothing but the letter: a judge that argues has not judged.
        letter = (verdict or "").strip().strip(".()").upper()
        if len(letter) == 1 and letter in LETTERS[:len(line["options"])]:
            read += 1
            right += LETTERS.index(letter) == line["answer"]
    scored = [line for line in lines if line["right"] is not None]
    total = sum(bool(line["right"]) for line in scored) + right
    return {"judge": name, "asked": len(unread), "read": read, "right": right, "failed": failed,
            "overall": total / len(scored) if scored else 0.0}


def _entries(cache: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in cache.read_text().splitlines()] if cache.exists() else []
