"""Records -> tokenised training samples: which questions of an image, in which form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from spatialllm_jax.data import chat
from spatialllm_jax.data.llava_source import LlavaSource, open_llava
from spatialllm_jax.data.patch_words import ATTRIBUTES
from spatialllm_jax.data.records import ImageRecord
from spatialllm_jax.data.storage import RecordSource, open_split
from spatialllm_jax.data.tokenizer import Tokenizer
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions.types import Question, Region

FORMS = ("branches", "dialogue", "plain", "contrastive", "patches")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One data source of a training stage.

    Attributes:
        name: shown in the metrics.
        path: dataset folder, with `split` within it; or a LLaVA JSON file (`data.llava_source`).
        types: question type -> relative weight of being drawn; questions of other types are left out. May be
            empty for a LLaVA file: whole conversations, whatever they ask.
        weight: share of this source in the mixture.
        count: instead of `weight`, in all sources of a stage or in none: samples this source contributes to one
            pass of the mixture, -1 for each of its records once. Up to the number of records, the first pass
            repeats none; later passes go on through the shuffled records where the last one stopped.
        form: "branches": independent questions share the image; "dialogue": they follow each other;
            "plain": LLaVA's stage-1 captions, no question; "contrastive": image-caption pairs for stage 0;
            "patches": the image alone, for the objective "patch_words".
        questions: number of questions drawn per sample (forms "branches" and "dialogue").
        patch_words: attributes that describe every visual token (`data.patch_words.ATTRIBUTES`), for stages
            that train on them.
        images: folder that the image paths of a LLaVA file start from; the file's own folder if empty.
    """

    name: str
    path: str
    types: Mapping[str, float] = dataclasses.field(default_factory=dict)
    split: str = "train"
    weight: float = 1.0
    form: str = "branches"
    questions: int = 1
    patch_words: Sequence[str] = ()
    count: int | None = None
    images: str = ""

    @property
    def is_llava(self) -> bool:
        """Whether `path` is a LLaVA JSON file rather than a dataset folder."""
        return self.path.endswith(".json")

    def __post_init__(self):
        if self.form not in FORMS:
            raise UserError(f"source {self.name!r}: unknown form {self.form!r}; choose one of {', '.join(FORMS)}")
        if not self.types and self.form != "patches" and not self.is_llava:
            raise UserError(f"source {self.name!r} names no question types")
        if self.count is not None and self.count < 1 and self.count != -1:
            raise UserError(f"source {self.name!r}: count {self.count} must be positive, -1 for every record once, or "
                            "None to go by weight")
        if self.images and not self.is_llava:
            raise UserError(f"source {self.name!r} sets images, which belongs to LLaVA JSON files; {self.path} holds "
                            "its own pictures, leave it out")
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


def open_source(source: SourceConfig) -> RecordSource | LlavaSource:
    """Random access to the records of a source.

    Raises:
        UserError: it is missing, empty, or no dataset.
    """
    records = open_llava(source.path, source.images) if source.is_llava else open_split(source.path, source.split)
    if len(records) == 0:
        where = source.path if source.is_llava else f"{source.path} split {source.split!r}"
        raise UserError(f"source {source.name!r}: {where} has no records")
    return records


def draw_questions(record: ImageRecord, source: SourceConfig, rng: np.random.Generator) -> list[Question]:
    """Draws up to `source.questions` different questions, types in proportion to their weights.

    Questions whose drawn marks would contradict those drawn already (same label, another object) are left
    out, since one image carries them all.
    """
    by_type: dict[str, list[Question]] = {}
    for question in record.questions:
        if not source.types or question.type in source.types:
            by_type.setdefault(question.type, []).append(question)
    types = sorted(by_type)
    for name in types:
        order = rng.permutation(len(by_type[name]))
        by_type[name] = [by_type[name][i] for i in order]
    drawn: list[Question] = []
    marks: dict[str, Region] = {}
    wanted = {"patches": 0, "plain": 1, "contrastive": 1}.get(source.form, source.questions)
    while types and len(drawn) < wanted:
        weights = np.array([source.types.get(name, 1.0) for name in types])
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
                  questions: Sequence[Question], has_image: bool = True) -> chat.Encoded | None:
    """Tokenises drawn questions in the source's form; None when no supervised token is left.

    Args:
        has_image: False for a text on its own, which takes no image positions.
    """
    if not has_image:
        text = dataclasses.replace(text, num_image_tokens=0)
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
