"""Balance of answers over a dataset, in one pass and constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from spatialllm_jax.questions.types import Question
from spatialllm_jax.questions.wording import AZIMUTH_WORDS
from spatialllm_jax.scene.relations import SIDES

# Answers of these types are made even over a dataset.
BALANCED: dict[str, tuple[str, ...]] = {
    "closer_to_camera": ("first", "second"),
    "closer_to_object": ("first", "second"),
    "facing_object": ("first", "second"),
    "higher": ("first", "second"),
    "facing_camera": SIDES,
    "on_which_side": SIDES,
    "same_direction": ("same", "different"),
    "left_right": ("left", "right"),
    "presence": ("yes", "no"),
}


def answer_key(question: Question) -> str:
    """What the balance counts: a side or word, or "first"/"second" mentioned.

    Read from the quantities where they decide it, so that it does not depend on wording.
    """
    q = question.quantities
    if question.type in ("closer_to_camera", "closer_to_object"):
        return "first" if q["distance_first"] < q["distance_second"] else "second"
    if question.type == "facing_object":
        return "first" if q["angle_first"] < q["angle_second"] else "second"
    if question.type == "higher":
        return "first" if q["height_first"] > q["height_second"] else "second"
    if question.type == "left_right":
        return "left" if q["x_first"] < q["x_second"] else "right"
    if question.type == "same_direction":
        return "same" if q["angle"] < 60 else "different"
    if question.type in ("facing_camera", "on_which_side"):
        if abs(q["elevation"]) > 45 and question.type == "facing_camera":
            return "top" if q["elevation"] > 0 else "bottom"
        return SIDES[round(q["bearing"] / 90) % 4]
    if question.type == "presence":
        return "yes" if q["present"] > 0.5 else "no"
    if question.type == "azimuth":
        return AZIMUTH_WORDS[round(q["azimuth"] / 45) % 8]
    return question.answer


class Balancer:
    """Decides, question by question in a fixed order, which to keep so that answers stay even.

    A question is kept while its answer is ahead of the rarest one by no more than `slack` (and 5 %); for
    questions whose options are letters the same holds for the position of the right one.
    The outcome depends on the order of the questions alone, so it is the same for any number of workers.
    """

    def __init__(self, slack: int = 6) -> None:
        self._slack = slack
        self._counts: dict[tuple[str, str], dict[str, int]] = {}

    def keep(self, question: Question, family: str = "") -> bool:
        """Whether to keep the question; counts it if so. Answers outside BALANCED are always kept."""
        answers = BALANCED.get(question.type)
        if answers is None:
            return True
        piles = [(self._pile(family, question.type, answers), answer_key(question))]
        if len(question.answer) == 1 and len(question.options) > 1:
            letters = self._pile(family, f"{question.type} of {len(question.options)}", question.options)
            piles.append((letters, question.answer))
        for counts, key in piles:
            if key in counts and counts[key] >= 1.05 * min(counts.values()) + self._slack:
                return False
        for counts, key in piles:
            if key in counts:
                counts[key] += 1
        return True

    def _pile(self, family: str, name: str, keys: tuple[str, ...]) -> dict[str, int]:
        return self._counts.setdefault((family, name), dict.fromkeys(keys, 0))

    def filter(self, questions: Iterable[Question], family: str = "") -> Iterator[Question]:
        """The questions to keep."""
        return (q for q in questions if self.keep(q, family))
