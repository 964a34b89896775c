"""Balance of answers over a dataset, in one pass and constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from spatialllm_jax.questions.types import Question
from spatialllm_jax.questions.wording import AZIMUTH_WORDS, CELLS
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
    "view_left_right": ("left", "right"),
    "view_above_below": ("above", "below"),
    "view_front_behind": ("front", "behind"),
    "presence": ("yes", "no"),
}


# Types in which one of two objects wins, with the answer that says that it is the first; and types about the
# sides of the first object.
CONTESTS = {"closer_to_camera": "first", "closer_to_object": "first", "facing_object": "first", "higher": "first",
            "view_left_right": "left", "view_above_below": "above", "view_front_behind": "front"}
SIDED = ("facing_camera", "on_which_side")


def answer_key(question: Question) -> str:
    """What the balance counts: a side or word, or "first"/"second" of the objects compared.

    Read from the quantities where they decide it, so that it depends on neither wording nor form: for a claim
    it is what is true, not "yes" or "no".
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
    if question.type == "view_left_right":
        return "left" if q["right_first"] < q["right_second"] else "right"
    if question.type == "view_above_below":
        return "above" if q["up_first"] > q["up_second"] else "below"
    if question.type == "view_front_behind":
        return "front" if q["forward_first"] < q["forward_second"] else "behind"
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
    if question.type == "where":
        column, row = (int(min(max(q[axis], 0.0), 0.999) * 3) for axis in "xy")
        return CELLS[row][column]
    return question.answer


class Balancer:
    """Decides, question by question in a fixed order, which to keep so that answers stay even.

    A question is kept while its answer is ahead of the rarest one by no more than `slack` (and 5 %); for
    choices the same holds for the position of the right one. Of claims it is "yes" and "no" that are kept even,
    over a type and for each claimed answer, so that a claim tells nothing about its truth. Within a category
    the same holds with `category_slack`: how often it wins a comparison, alone and against each other
    category, and which of its sides is asked for. Otherwise "dogs are closer than trucks", true of most
    pictures since large things only fit when they are far, would answer half of the questions.
    The outcome depends on the order of the questions alone, so it is the same for any number of workers.
    """

    def __init__(self, slack: int = 6, category_slack: int = 2) -> None:
        self._slack = slack
        self._category_slack = category_slack
        self._counts: dict[tuple[str, str], dict[str, int]] = {}

    def keep(self, question: Question, family: str = "") -> bool:
        """Whether to keep the question; counts it if so. Answers outside BALANCED are always kept."""
        answers = BALANCED.get(question.type)
        if answers is None:
            return True
        key = answer_key(question)
        if not self._fair(question, key, family):
            return False
        piles = [(self._pile(family, question.type, answers), key)]
        if question.form == "yes_no":
            said = "yes" if question.claim == key else "no"
            piles = [(self._pile(family, f"{question.type}: {about}", ("yes", "no")), said)
                     for about in ("claims", f"claims of {question.claim}")]
        elif question.form == "choice":
            letters = self._pile(family, f"{question.type} of {len(question.options)}", question.options)
            piles.append((letters, question.answer))
        for counts, key in piles:
            if key in counts and counts[key] >= 1.05 * min(counts.values()) + self._slack:
                return False
        for counts, key in piles:
            if key in counts:
                counts[key] += 1
        for counts, key in self._category_piles(question, answer_key(question), family):
            counts[key] += 1
        return True

    def _fair(self, question: Question, key: str, family: str) -> bool:
        """Whether the question leaves every category's answers even, so that a category alone tells nothing."""
        return all(counts[name] < 1.05 * min(counts.values()) + self._category_slack
                   for counts, name in self._category_piles(question, key, family) if name in counts)

    def _category_piles(self, question: Question, key: str, family: str) -> list[tuple[dict[str, int], str]]:
        """(counts, the one this question adds to) per category that the question is about."""
        names = [region.phrase for region in question.regions]
        if question.type in CONTESTS and len(names) >= 2:
            first, second = names[-2:]
            winner, loser = (first, second) if key == CONTESTS[question.type] else (second, first)
            if winner == loser:
                return []
            pair = f"{question.type}: {min(winner, loser)} or {max(winner, loser)}"
            outcomes = ("won", "lost")
            return [(self._pile(family, f"{question.type}: {winner}", outcomes), "won"),
                    (self._pile(family, f"{question.type}: {loser}", outcomes), "lost"),
                    (self._pile(family, pair, (min(winner, loser), max(winner, loser))), winner)]
        if question.type in SIDED and names and key in BALANCED[question.type]:
            return [(self._pile(family, f"{question.type}: {names[0]}", BALANCED[question.type]), key)]
        return []

    def _pile(self, family: str, name: str, keys: tuple[str, ...]) -> dict[str, int]:
        return self._counts.setdefault((family, name), dict.fromkeys(keys, 0))

    def filter(self, questions: Iterable[Question], family: str = "") -> Iterator[Question]:
        """The questions to keep."""
        return (q for q in questions if self.keep(q, family))
