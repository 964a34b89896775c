"""One self-contained HTML page to judge questions by eye: pictures, boxes, fronts, numbers, histograms.

One question is in focus at a time: y, n and u say that its answer is right, wrong or unsure and go on to the
next, so that a hundred take minutes. Judgments stay in the browser (localStorage, by what the question says,
so that a dataset written anew does not inherit them) and are saved as JSON.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections import Counter
from collections.abc import Sequence

from spatialllm_jax.data.audit_drawing import overlay, picture_url
from spatialllm_jax.data.audit_style import SCRIPT, STYLE
from spatialllm_jax.data.audit_tally import Tally
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.questions.reading import full_answer
from spatialllm_jax.questions.recheck import recheck
from spatialllm_jax.questions.types import Question
from spatialllm_jax.scene.serialize import scene_from_json
from spatialllm_jax.scene.types import Scene

# Of the pictures in the page: one fills most of a screen.
_WIDTH = 1080
__all__ = ["audit_page", "overlay", "picture_url"]


def audit_page(title: str, chosen: Sequence[tuple[ImageRecord, Question]], tally: Tally, card_text: str = "") -> str:
    """The page.

    Args:
        chosen: the questions to judge, in this order; each record's picture is embedded once.
        tally: counts over the whole split.
        card_text: the dataset's card.
    """
    pictures: dict[str, str] = {}
    scenes: dict[str, Scene | None] = {}
    cards = []
    for record, question in chosen:
        if record.image_id not in pictures:
            pictures[record.image_id] = picture_url(record, _WIDTH)
            scenes[record.image_id] = scene_from_json(record.scene) if record.scene else None
        scene = scenes[record.image_id]
        cards.append(_card(record, question, scene, recheck(question, scene)))
    verdict = "every answer agrees with its numbers"
    if tally.wrong:
        verdict = f"{tally.wrong.total()} answers disagree with their numbers"
    fields = {"type": Counter(q.type for _, q in chosen), "form": Counter(q.form for _, q in chosen),
              "source": Counter(q.source for _, q in chosen)}  # fmt: skip
    selects = "".join(
        f'<label>{name.capitalize()} <select id="{name}"><option value="">all</option>{_choices(counts)}</select>'
        "</label>"
        for name, counts in fields.items()
    )
    # "</script>" and "<!--" inside a string would end the script early.
    data = json.dumps(pictures).replace("<", "\\u003c")
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>{STYLE}</style><body class="one">
<header><h1>{html.escape(title)}</h1>
<p>{len(chosen)} of the split's {tally.questions} questions on {tally.images} images; in the whole split {verdict}.</p>
{selects}
<label>Text <input id="find" placeholder="part of the question or answer"></label>
<label><input type="checkbox" id="open"> not judged yet</label>
<label><input type="checkbox" id="bad"> only disagreements</label>
<div class="bar"><button id="mode">all at once (g)</button> <button id="save">save judgments</button>
<button id="clear">forget them</button> <progress id="done" max="1" value="0"></progress> <b id="count"></b>
<span id="shown"></span>
<span class="keys"><kbd>y</kbd> right <kbd>n</kbd> wrong <kbd>u</kbd> unsure <kbd>←</kbd> <kbd>→</kbd> move
<kbd>x</kbd> take back</span></div></header>
<main data-title="{html.escape(title, quote=True)}">{"".join(cards)}</main>
<p class="note">Boxes: thick edges bound the front face, the arrow is the front (dashed where the category has no
semantic front). Numbers are metres and degrees.</p>
<details><summary>Histograms of the whole split</summary><div class="charts">{tally.charts()}</div></details>
<details><summary>Dataset card</summary><pre>{html.escape(card_text)}</pre></details>
<script>const pictures = {data};{SCRIPT}</script></body></html>
"""


def _choices(counts: Counter[str]) -> str:
    return "".join(
        f"<option value='{html.escape(key, quote=True)}'>{html.escape(key)} ({number})</option>"
        for key, number in sorted(counts.items())
    )


def _card(record: ImageRecord, question: Question, scene: Scene | None, problem: str | None) -> str:
    numbers = ", ".join(f"{k} {v:.2f}" for k, v in question.quantities.items())
    if question.margin is not None:
        numbers += f" · margin {question.margin:.2f}"
    # A letter says little by itself.
    answers = {question.answer: _said(question.answer, full_answer(question))}
    turns = "".join(
        f"<p class='q'>{html.escape(user).replace(chr(10), '<br>')}</p>"
        f"<p class='a'>{html.escape(answers.get(assistant, assistant))}</p>"
        for user, assistant in question.turns
    )
    listed = question.options if question.form != "choice" else ()
    choices = "".join(
        f"<li{' class=right' if k == question.answer_index else ''}>{html.escape(option)}</li>"
        for k, option in enumerate(listed)
    )
    flag = f"<p class='bad'>{html.escape(problem)}</p>" if problem else ""
    kind, form, source, key = (html.escape(v, quote=True)
                               for v in (question.type, question.form, question.source, question.id))  # fmt: skip
    said = hashlib.sha256(json.dumps([question.id, question.turns]).encode()).hexdigest()[:16]
    return (
        f"<article data-key='{said}' data-question='{key}' data-type='{kind}' data-form='{form}' "
        f"data-source='{source}'{' data-bad=1' if problem else ''}>"
        f"<div class='pic' style='--ratio:{record.width / record.height:.4f}'>"
        f"<img data-id='{html.escape(record.image_id, quote=True)}' alt=''>{overlay(record, question, scene)}</div>"
        f"<div class='txt'><p class='meta'>{kind} · {form} · {source} · {key}</p>{turns}{flag}"
        f"<ul>{choices}</ul><p class='num'>{html.escape(numbers)}</p></div></article>"
    )


def _said(answer: str, full: str) -> str:
    return answer if answer == full else f"{answer}. {full}"
