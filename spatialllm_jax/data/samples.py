"""Records -> tokenised training samples: which questions of an image, in which form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from spatialllm_jax.data import chat
from spatialllm_jax.data.patch_words import ATTRIBUTES
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.tokenizer import Tokenizer
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.types import Question, Region

FORMS = ("branches", "dialogue", "plain", "contrastive", "patches")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One data source of a training stage.

    Attributes:
        name: shown in the metrics.
        path: dataset folder; `split` within it.
        types: question type -> relative weight of being drawn; questions of other types are left out.
        weight: share of this source in the mixture.
        form: "branches": independent questions share the image; "dialogue": they follow each other;
            "plain": LLaVA's stage-1 captions, no question; "contrastive": image-caption pairs for stage 0;
            "patches": the image alone, for the objective "patch_words".
        questions: number of questions drawn per sample (forms "branches" and "dialogue").
        patch_words: attributes that describe every visual token (`data.patch_words.ATTRIBUTES`), for stages
            that train on them.
    """

    name: str
    path: str
    types: Mapping[str, float]
    split: str = "train"
    weight: float = 1.0
    form: str = "branches"
    questions: int = 1
    patch_words: Sequence[str] = ()

    def __post_init__(self):
        if self.form not in FORMS:
            raise UserError(f"source {self.name!r}: unknown form {self.form!r}; choose one of {', '.join(FORMS)}")
        if not self.types and self.form != "patches":
            raise UserError(f"source {self.name!r} names no question types")
        if unknown := set(self.patch_words) - set(ATTRIBUTES):
            raise UserError(f"source {self.name!r}: unknown patch words {sorted(unknown)}; choose from "
                            f"{', '.join(ATTRIBUTES)}")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How samples become tokens.

    Attributes:
        template: a key of `chat.TEMPLATES`.
        system: system text, None for the template's own.
        max_length: longest sample; questions that do not fit whole are left out.
        num_image_tokens: positions one image takes.
    """

    template: str
    max_length: int
    num_image_tokens: int
    system: str | None = None


def draw_questions(record: ImageRecord, source: SourceConfig, rng: np.random.Generator) -> list[Question]:
    """Draws up to `source.questions` different questions, types in proportion to their weights.

    Questions whose drawn marks would contradict those drawn already (same label, another object) are left
    out, since one image carries them all.
    """
    by_type: dict[str, list[Question]] = {}
    for question in record.questions:
        if question.type in source.types:
            by_type.setdefault(question.type, []).append(question)
    types = sorted(by_type)
    for name in types:
        order = rng.permutation(len(by_type[name]))
        by_type[name] = [by_type[name][i] for i in order]
    drawn: list[Question] = []
    marks: dict[str, Region] = {}
    wanted = {"patches": 0, "plain": 1, "contrastive": 1}.get(source.form, source.questions)
    while types and len(drawn) < wanted:
        weights = np.array([source.types[name] for name in types])
        name = types[rng.choice(len(types), p=weights / weights.sum())]
        question = by_type[name].pop()
        if not by_type[name]:
            types.remove(name)
        regions = question.regions if question.region_style == "mark" else ()
        if any(marks.get(region.label, region) != region for region in regions):
            continue
        marks.update({region.label: region for region in regions})
        drawn.append(question)
    return drawn


def marks_of(questions: Sequence[Question]) -> tuple[Region, ...]:
    """The regions that must be drawn on the image for these questions, by label."""
    found = {region.label: region for question in questions if question.region_style == "mark"
             for region in question.regions}
    return tuple(found[label] for label in sorted(found))


def encode_sample(tokenizer: Tokenizer, text: TextConfig, source: SourceConfig,
                  questions: Sequence[Question]) -> chat.Encoded | None:
    """Tokenises drawn questions in the source's form; None when no supervised token is left."""
    begin = chat.begin_token(tokenizer)
    if source.form == "patches":
        return chat.encode_plain(tokenizer, None, begin=begin, num_image_tokens=text.num_image_tokens)
    if not questions:
        return None
    if source.form == "plain":
        encoded = chat.encode_plain(tokenizer, questions[0].answer, begin=begin, max_length=text.max_length,
                                    num_image_tokens=text.num_image_tokens)
    elif source.form == "contrastive":
        # A probing answer ("3.5 m") says nothing without its question; a caption is a text of its own.
        only = questions[0]
        caption = only.answer if only.type == "caption" else f"{only.text} {only.answer}"
        encoded = encode_caption(tokenizer, caption, text)
    else:
        turns = [turn for question in questions for turn in question.turns]
        encoded = chat.encode(tokenizer, turns, template=text.template, system=text.system,
                              num_image_tokens=text.num_image_tokens, branches=source.form == "branches",
                              max_length=text.max_length)
    return encoded if encoded.answers else None


def encode_caption(tokenizer: Tokenizer, caption: str, text: TextConfig) -> chat.Encoded:
    """A caption for CLIP's text tower: begin, words, end of text; the image is not among the tokens.

    Captions longer than `text.max_length` are cut, as CLIP does, and keep their end mark.
    """
    begin = chat.begin_token(tokenizer)
    stop = chat.stop_ids(tokenizer, text.template)[0]
    ids = [*((tokenizer.id(begin),) if begin else ()), *tokenizer.encode(caption)][:text.max_length - 1]
    tokens = np.array([*ids, stop], np.int32)
    length = len(tokens)
    return chat.Encoded(tokens, np.ones(length, bool), np.zeros(length, np.int32),
                        np.arange(length, dtype=np.int32), np.full(length, -1, np.int32), ((0, length),))
