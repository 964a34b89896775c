"""What a benchmark asks: `Item`, one question; `Skipped`, a row that could not become one; the published prompts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spatialllm_jax.inference.prompts import PLACE
from spatialllm_jax.questions.types import Region
from spatialllm_jax.questions.wording import LETTERS

YES_NO = ("Yes", "No")
NUMBERED = re.compile(r"<image (\d+)>")      # a picture's place in a text, by its number


@dataclasses.dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    Attributes:
        id: unique within the benchmark; answers are stored and resumed by it.
        image_id: equal for items that show the same picture, which is encoded once.
        image: encoded picture without marks; None for a question about none.
        more: (image id, encoded picture) of those behind the first. The text may say where they stand: "<image 2>".
        question: the text, without its options where `layout` lists them.
        rule: how the answer is read and compared, a key of `rules.RULES`.
        answer: index of the right option ("choice", "yes_no", "claim"), metres, hour, or text; None when unknown.
        options: what can be chosen.
        layout: a key of LAYOUTS; all but "plain" list the options under letters.
        published: the whole prompt as the benchmark's file has it, instead of `layout`.
        type, group: what the report breaks scores down by.
        marks: regions to draw on the picture.
        chance: share of right answers by uniform guessing; None takes 1 / number of options.
        cluster: ties items together whose answers are not independent although their pictures differ (mirrored ones).
        circle, flip, whole: items with the same text are one question under rotated options, one mirrored pair, or
            one question in all its variants; "" for none. A group is right when all of it is.
        extra: more columns for the benchmark's own score.
    """

    id: str
    image_id: str
    image: bytes | None = dataclasses.field(repr=False)
    question: str
    rule: str
    answer: int | float | str | None
    options: tuple[str, ...] = ()
    layout: str = "plain"
    published: str = dataclasses.field(default="", repr=False)
    type: str = "all"
    group: str = "all"
    marks: tuple[Region, ...] = ()
    chance: float | None = None
    cluster: str = ""
    circle: str = ""
    flip: str = ""
    whole: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    more: tuple[tuple[str, bytes], ...] = dataclasses.field(default=(), repr=False)

    @property
    def prompt(self) -> str:
        """The text that is sent to the model."""
        return self.published or LAYOUTS[self.layout](self.question, self.options)

    @property
    def pictures(self) -> tuple[tuple[str, bytes | None], ...]:
        """(image id, encoded picture) in the order in which a prompt shows them: as its text names them, if it does."""
        pictures = ((self.image_id, self.image), *self.more)
        named = [int(number) - 1 for number in NUMBERED.findall(self.prompt)] if self.more else []
        return tuple(pictures[k] for k in named) or pictures

    @property
    def text(self) -> str:
        """`prompt` as the engine takes it, the places of its `pictures` without their numbers."""
        return NUMBERED.sub(PLACE, self.prompt) if len(self.pictures) > 1 else self.prompt

    @property
    def lettered(self) -> bool:
        """Whether options are chosen by letter."""
        return self.layout != "plain"

    @property
    def candidates(self) -> tuple[str, ...]:
        """What is scored when the likeliest option is chosen."""
        return tuple(LETTERS[:len(self.options)]) if self.lettered else self.options


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A row that cannot be asked: `where` it is and `why`, for the report; `final` where no other can be either."""

    where: str
    why: str
    final: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


def yes_or_no(item: Item) -> Item:
    """The item, asked for yes or no where its "exact" answer is one of them."""
    text = str(item.answer).lower()
    if text not in ("yes", "no"):
        return item
    return dataclasses.replace(item, rule="yes_no", answer=int(text == "no"), options=YES_NO)


def rotations(item: Item) -> list[Item]:
    """The item under every rotation of its options (CircularEval, Liu et al. 2023), itself first; [item] where the file
    already holds rotations or there are no letters."""
    if item.circle or not item.lettered or not isinstance(item.answer, int):
        return [item]
    result = []
    for shift in range(len(item.options)):
        options = item.options[shift:] + item.options[:shift]
        result.append(dataclasses.replace(
            item, id=f"{item.id}-{shift}" if shift else item.id, options=options,
            answer=(item.answer - shift) % len(options), published="" if shift else item.published, circle=item.id))
    return result


def _list(question: str, options: Sequence[str], head: str, mark: str, tail: str) -> str:
    lines = [mark.format(letter) + option for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([head.format(question), *lines, *([tail] if tail else [])])


# The wording with which the benchmarks' own tools ask (docs/evaluation.md names the source of each).
LAYOUTS: dict[str, Callable[[str, Sequence[str]], str]] = {
    "plain": lambda question, options: question,
    "vlmevalkit": lambda question, options: _list(
        question, options, "Question: {}\nOptions:", "{}. ",
        "Please select the correct answer from the options above."),
    "llava": lambda question, options: _list(
        question, options, "{}", "{}. ", "Answer with the option's letter from the given choices directly."),
    "brackets": lambda question, options: _list(
        question, options, "{} Select from the following choices.", "({}) ", ""),
}
