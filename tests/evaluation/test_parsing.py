"""Generated answers as models write them, and the option each one names."""

import pytest

from spatialllm_jax.evaluation.parsing import parse_choice

THINGS = ("the car", "the bus")
SIDES = ("front", "left", "back", "right")
CORNERS = ("left", "top left", "right")
REGIONS = ("The car in Region [0]", "The car in Region [1]")
SHORT = ("car [2]", "truck [1]")
LETTERS = ("A", "B", "C", "D")
SAME = ("They face the same direction.", "They face very different directions.")

CASES = [
    # Letters
    ("B", THINGS, 1), ("b", THINGS, 1), ("a", THINGS, 0), ("A", THINGS, 0), ("(b)", THINGS, 1), ("b.", THINGS, 1),
    ("B)", THINGS, 1), ("**B**", THINGS, 1), ("B.\n", THINGS, 1), ("B. the bus", THINGS, 1),
    ("B) The bus.", THINGS, 1), ("(A) the car", THINGS, 0), ("B: the bus is nearer", THINGS, 1),
    ("B the bus", THINGS, 1), ("The answer is B.", THINGS, 1), ("The answer is (B) the bus", THINGS, 1),
    ("The correct answer is: A", THINGS, 0), ("Answer: b", THINGS, 1), ("Option A", THINGS, 0),
    ("I would choose option (b).", THINGS, 1), ("The answer is B because it looks larger", THINGS, 1),
    ("B. It is not facing us.", THINGS, 1), ("D. right", SIDES, 3),
    # Texts
    ("the car", THINGS, 0), ("The Car.", THINGS, 0), ("car", THINGS, 0), ("A car", ("bus", "car"), 1),
    ("A bus.", THINGS, 1), ("The answer is a bus.", ("car", "bus"), 1), ("It's the bus", THINGS, 1),
    ("The bus is closer to the camera.", THINGS, 1), ("Its left side", SIDES, 1), ("left-hand side", SIDES, 1),
    ("Left", ("left side", "right side"), 0), ("top left", CORNERS, 1), ("left", CORNERS, 0),
    ("It is at the top left of the desk", CORNERS, 1), ("the same", ("same", "different"), 0),
    ("They face very different directions", SAME, 1), ("They face the same direction.", SAME, 0),
    # Regions
    ("Region [1]", REGIONS, 1), ("The car in Region [1] is closer.", REGIONS, 1), ("[0]", REGIONS, 0),
    ("region 1", REGIONS, 1), ("truck [1]", SHORT, 1), ("The car [2] is closer to the desk [0].", SHORT, 0),
    ("[0.10, 0.20, 0.30, 0.40]", ("[0.10, 0.20, 0.30, 0.40]", "[0.10, 0.20, 0.30, 0.45]"), 0),
    # Options that are letters themselves
    ("A", LETTERS, 0), ("a.", LETTERS, 0), ("C. the left side", LETTERS, 2), ("The answer is D", LETTERS, 3),
    # No option, or no single one
    ("", THINGS, None), ("  \n", THINGS, None), ("...", THINGS, None), ("E", THINGS, None), ("(c)", THINGS, None),
    ("The answer is F.", SIDES, None), ("I cannot tell from the picture.", THINGS, None),
    ("Sorry, I can't help with that.", THINGS, None), ("The car or the bus", THINGS, None),
    ("The car is closer than the bus.", THINGS, None), ("A or B", THINGS, None), ("A, B", THINGS, None),
    ("(A) and (B)", THINGS, None), ("B. the car", THINGS, None), ("It is not the car.", THINGS, None),
    ("It isn't the bus", THINGS, None), ("Neither of them", THINGS, None), ("Regions [0] and [1]", REGIONS, None),
    ("A vehicle", THINGS, None), ("laptop", ("top", "left"), None), ("the lorry", THINGS, None),
    ("A dog and a car", ("dog", "car"), None), ("the right one is on the left", SIDES, None),
]


@pytest.mark.parametrize(("answer", "options", "expected"), CASES)
def test_real_answer_forms(answer, options, expected):
    assert parse_choice(answer, options) == expected


def test_every_option_is_read_back_from_its_own_text():
    for options in (THINGS, SIDES, CORNERS, REGIONS, SHORT, LETTERS, SAME):
        assert [parse_choice(option, options) for option in options] == list(range(len(options)))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Yes", 0), ("no.", 1), ("No, it is not.", 1), ("yes, the front side of the car faces the camera", 0),
     ("Yes and no", None), ("no, yes", None), ("Perhaps", None), ("The car is nosy", None),
     ("No, the front side of the car is not facing the camera.", 1)],
)
def test_yes_and_no(answer, expected):
    claim = "the front side of the car is {}facing the camera."
    options = (f"Yes, {claim.format('')}", f"No, {claim.format('not ')}")
    assert parse_choice(answer, options) == expected
    flipped = None if expected is None else 1 - expected
    assert parse_choice(answer, options[::-1]) == flipped
    assert parse_choice(answer, ("Yes", "No")) == expected


def test_equal_options_name_none():
    assert parse_choice("the car", ("the car", "car")) is None
