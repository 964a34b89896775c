"""Lengths, clock directions and short phrases as models write them."""

import pytest

from spatialllm_jax.evaluation.parsing import parse_choice, parse_claim
from spatialllm_jax.evaluation.quantities import (
    given_hour,
    given_metres,
    parse_clock,
    parse_metres,
    parse_phrase,
    same_phrase,
)

LENGTHS = [
    ("1.2 meters", 1.2), ("1.2m", 1.2), ("It is 3 ft.", 0.9144), ("48.47 centimeters.", 0.4847), ("10.0 inches", 0.254),
    ("about 1,200 mm", 1.2), ("two feet", 0.6096), (".5 m", 0.5), ("12 in.", 0.3048), ("5'3\"", 1.6002), ("5'", 1.524),
    ("5 feet 3 inches", 1.6002), ("5 feet and 3 inches tall", 1.6002), ("2 yards", 1.8288), ("0.01 km", 10.0),
    ("Region [0] and Region [1] are 11.4 meters apart.", 11.4), ("1.2 meters (3.94 feet)", 1.2),
    ("Region [0] is 0 meters away", 0.0), ("three-meter gap", 3.0),
    # Not one length
    ("", None), ("1.2", None), ("2-3 meters", None), ("between 2 and 3 meters", None), ("2 to 3 m", None),
    ("1 meter or 2 meters", None), ("It is not 2 meters.", None), ("in 5 minutes", None), ("It is 2 in front", None),
    ("Answer: '2'", None),
    ("I cannot measure that from a picture.", None), ("Region [1]", None), ("a few meters", None),
]
HOURS = [
    ("2 o'clock", 2), ("Region [1] is at 11 o’clock from Region [0].", 11),
    ("two o'clock", 2), ("7", 7), ("12 oclock.", 12),
    ("around the 12 o'clock direction", 12), ("2:00 o'clock", 2), ("at 3 o'clock, yes 3 o'clock", 3),
    ("", None), ("13 o'clock", None), ("0", None), ("between 2 and 3 o'clock", None), ("2 or 3 o'clock", None),
    ("to the north", None), ("2 o'clock from [0], 8 o'clock from [1]", None), ("Region [2]", None), ("0.5", None),
]
PHRASES = [
    ("{'Reasoning': 'the answer is x', 'Answer': 'Yes'}", "yes"),
    ('{"Reasoning": "", "Answer": "School bus"}', "school bus"),
    ("{'Answer': 3}", "3"), ("red", "red"), ("Red.", "red"), ("Answer: small", "small"), ("seven", "seven"), ("4", "4"),
    ("I think it is red", None), ("11", None), ("", None), ("'Answer': 'red', 'Answer': 'blue'", None), ("maybe", None),
]
CLAIMS = [
    ("Yes, Region [0] is taller.", 0), ("Indeed, Region [0] has a greater height.", 0), ("Correct, it is.", 0),
    ("That is True.", 0), ("No.", 1), ("Incorrect, it is not above.", 1), ("In fact, Region [0] may be shorter.", 1),
    ("Actually, it might be smaller", 1), ("That is False.", 1), ("that's not right", 1), ("The answer is yes", 0),
    ("Yes and no", None), ("Actually, yes", None), ("No, yes", None), ("Region [0] is taller.", None), ("", None),
    ("I'm sorry, but I can't assist with that.", None), ("Correctly guessing is hard", None), ("Nope", None),
]
# What a judge says an answer says, and what is believed of it.
GIVEN_LENGTHS = [
    ("Hm, two and a half metres I'd say", 2.5, "metres", 2.5), ("a metre and a half", 1.5, "m", 1.5),
    ("half a foot", 0.5, "feet", 0.1524), ("three hundred and fifty cm", 350, "cm", 3.5),
    ("2 and a half m", 2.5, "m", 2.5),
    ("three quarters of a metre", 0.75, "meter", 0.75), ("a couple of yards", 2, "Yards", 1.8288),
    ("It's not far: 1,200 mm or so", 1200, "mm", 1.2), ("Region [3] is 2.5 m away, not 3 m", 2.5, "m", 2.5),
    ("5' or so", 5, "ft", 1.524), ("5' or so", 5, "'", 1.524),
    # It was not said.
    ("2.5 m", 3, "m", None), ("2.5 m", 2.5, "feet", None), ("2.5", 2.5, "m", None), ("many metres", 10, "metres", None),
    ("Region [3] is a few metres away", 3, "metres", None), ("2-3 m", 2.5, "m", None), ("2-3 m", 2, "m", None),
    ("2 m", -2, "m", None), ("0 m", 0, "m", None), ("2 m", 2, "parsecs", None), ("a metre", float("inf"), "m", None),
    ("a metre", float("nan"), "m", None), ("2 m then 3 m", 5, "m", None), ("it is 3 in front", 3, "inches", None),
]
GIVEN_HOURS = [
    ("it is at about 3, or so", 3, 3), ("at your three", 3, 3), ("to the right", 3, None), ("2 or 3", 3, None),
    ("13", 13, None), ("0", 0, None), ("Region [3] is behind you", 3, None), ("Region 3, at 6", 6, 6),
]


@pytest.mark.parametrize("text, number, unit, metres", GIVEN_LENGTHS)
def test_lengths_that_others_read(text, number, unit, metres):
    assert given_metres(number, unit, text) == (None if metres is None else pytest.approx(metres))


@pytest.mark.parametrize("text, said, hour", GIVEN_HOURS)
def test_hours_that_others_read(text, said, hour):
    assert given_hour(said, text) == hour


@pytest.mark.parametrize("text, metres", LENGTHS)
def test_lengths(text, metres):
    assert parse_metres(text) == (None if metres is None else pytest.approx(metres))


@pytest.mark.parametrize("text, hour", HOURS)
def test_clock_directions(text, hour):
    assert parse_clock(text) == hour


@pytest.mark.parametrize("text, phrase", PHRASES)
def test_phrases(text, phrase):
    assert parse_phrase(text) == phrase


@pytest.mark.parametrize("text, verdict", CLAIMS)
def test_claims(text, verdict):
    assert parse_claim(text) == verdict


@pytest.mark.parametrize("said, answer, same", [
    ("yes", "Yes", True), ("none", "No", True), ("0", "no", True), ("3", "yes", True), ("3", "no", False),
    ("0", "yes", False), ("three", "3", True), ("suv", "sedan", True), ("road bike", "tandem bike", True),
    ("suv", "school bus", False),
    ("car", "minivan", True), ("red", "blue", False), ("true", "yes", True), ("left", "left", True), ("1", "2", False),
])
def test_spatial457_compares_as_published(said, answer, same):
    assert same_phrase(said, answer) is same


@pytest.mark.parametrize("text, options, index", [
    ("There are 3 chairs.", ("3", "2", "5"), 0), ("3", ("3", "2"), 0), ("(B) 2", ("3", "2"), 1),
    ("3 or 2", ("3", "2"), None), ("3.5", ("3", "2"), None), ("13", ("3", "2"), None),
    ("Region [1] is higher up.", ("Region [0]", "Region [1]"), 1),
    ("With more height is Region [0].", ("Region [0]", "Region [1]"), 0),
    ("Region [0] is above Region [1]", ("Region [0]", "Region [1]"), None),
    ("I'm sorry, but I can't assist with that.", ("left", "right"), None),
    ("As an AI, I cannot see the picture, so I am unable to choose.", ("left", "right"), None),
    ("Both the car and the bus", ("the car", "the bus"), None), ("Both.", ("the car", "the bus"), None),
    ("Either A or B", ("the car", "the bus"), None), ("The answer could be A, B or C.", ("x", "y", "z"), None),
    ("It is impossible to say", ("yes it is", "no"), None), ("<think>", ("left", "right"), None),
])
def test_counts_regions_refusals_and_both(text, options, index):
    assert parse_choice(text, options) == index
