"""Every sentence the data engine can say, as tables.

A template's question and answer hold the fields {a}, {b}, {c} (references, in the roles that the
family gives them) and the answer {x}; {X} is {x} with a capital. The first "full" wording of a type is
the paper's where the paper shows one. "short" wordings are made of few, frequent words, and their
answers are the bare answer, so that a tiny word-level model can read and say them.
"""

from __future__ import annotations

import numpy as np

from spatialllm_jax.errors import UserError

Template = tuple[str, str]
_LOCATIONS = "Consider the real-world 3D locations of the objects. "
_ORIENTATIONS = "Consider the real-world 3D orientations of the objects. "
_BOTH = "Consider the real-world 3D locations and orientations of the objects. "

FULL: dict[str, tuple[Template, ...]] = {
    "closer_to_camera": (
        (_BOTH + "Which object is closer to the viewer, {a} or {b}?", "{X} is closer to the viewer."),
        (_LOCATIONS + "Which is nearer to the camera, {a} or {b}?", "{X} is nearer to the camera."),
        ("Between {a} and {b}, which one is closer to the camera?", "{X} is closer to the camera."),
        ("Compare {a} with {b}: which is at the smaller distance from the viewer?",
         "{X} is at the smaller distance from the viewer."),
    ),
    "closer_to_object": (
        (_LOCATIONS + "Which object is closer to {c}, {a} or {b}?", "{X} is closer to {c}."),
        (_BOTH + "Which one is nearer to {c} in 3D space, {a} or {b}?", "{X} is nearer to {c}."),
        ("Measured from {c}, is {a} or {b} closer?", "{X} is closer to {c}."),
        ("Which of these two has the shorter distance to {c}: {a} or {b}?",
         "{X} has the shorter distance to {c}."),
    ),
    "facing_camera": (
        (_ORIENTATIONS + "Which side of {a} is facing the camera?", "The {x} side of {a} is facing the camera."),
        (_BOTH + "Which side of {a} is turned towards the viewer?",
         "The {x} side of {a} is turned towards the viewer."),
        ("From the camera's position, which side of {a} do we see: its front, left, back or right side?",
         "We see the {x} side of {a}."),
        ("Which side of {a} does the viewer face?", "The viewer faces the {x} side of {a}."),
    ),
    "facing_object": (
        (_BOTH + "Which object is {c} facing towards, {a} or {b}?", "{C} is facing towards {x}."),
        (_ORIENTATIONS + "Is {c} facing {a} or {b}?", "{C} is facing {x}."),
        ("Towards which object does the front of {c} point, {a} or {b}?", "The front of {c} points towards {x}."),
        ("If {c} moved straight ahead, would it head for {a} or {b}?", "It would head for {x}."),
    ),
    "same_direction": (
        (_ORIENTATIONS + "Are {a} and {b} facing the same (or similar) directions, or very different directions?",
         "They are facing {x}."),
        (_BOTH + "Do {a} and {b} face the same or similar directions, or very different ones?", "They face {x}."),
        ("Compare the orientations of {a} and {b}: do they face similar or very different directions?",
         "They face {x}."),
        ("Are {a} and {b} oriented alike, or do they face very different directions?",
         "They are oriented in {x}."),
    ),
    "higher": (
        (_LOCATIONS + "Which object has a higher location, {a} or {b}?", "{X} has a higher location."),
        (_BOTH + "Which object is located higher in 3D space, {a} or {b}?", "{X} is located higher in 3D space."),
        ("Whose centre is higher above the ground, that of {a} or that of {b}?",
         "The centre of {x} is higher above the ground."),
        ("Comparing {a} with {b}, which is at the greater height?", "{X} is at the greater height."),
    ),
    "on_which_side": (
        (_BOTH + "From the perspective of {a}, in which direction is {b}?",
         "{B} is in the {x} direction of {a}."),
        (_BOTH + "On which side of {a} is {b}?", "{B} is on the {x} side of {a}."),
        ("Seen from {a}, with its own front as the reference, is {b} to the front, left, back or right?",
         "{B} is to the {x} of {a}."),
        ("Taking the orientation of {a} into account, on which of its four sides is {b}?",
         "{B} is on the {x} side of {a}."),
    ),
    "depth": (
        ("How far is {a} from the camera?", "{A} is about {x} from the camera."),
        ("What is the distance between the viewer and {a}?", "The distance between the viewer and {a} is about {x}."),
        ("Estimate the depth of {a} from the viewer.", "{A} is about {x} away from the viewer."),
    ),
    "distance": (
        ("How far apart are {a} and {b}?", "{A} and {b} are about {x} apart."),
        ("What is the 3D distance between {a} and {b}?", "The distance between {a} and {b} is about {x}."),
        ("Estimate the distance from {a} to {b}.", "It is about {x}."),
    ),
    "azimuth": (
        ("What is the azimuth of {a} as seen from the camera?", "The azimuth of {a} is {x}."),
        ("From which azimuth, counted from its front towards its left, is {a} seen?",
         "{A} is seen from an azimuth of {x}."),
        ("How is {a} turned about its vertical axis relative to the viewer?",
         "Relative to the viewer, its azimuth is {x}."),
    ),
    "elevation": (
        ("From which elevation is {a} seen?", "{A} is seen from an elevation of {x}."),
        ("What is the elevation of the camera as seen from {a}?", "The elevation of the camera is {x}."),
        ("How far above the horizontal plane of {a} is the viewer, as an angle?", "The elevation is {x}."),
    ),
    "theta": (
        ("What is the in-plane rotation of {a}, counted counter-clockwise?", "Its in-plane rotation is {x}."),
        ("By which angle is {a} rotated within the image plane?", "{A} is rotated by {x} within the image plane."),
    ),
    "location": (
        ("Where is {a} in 3D, relative to the camera?", "{A} is at {x}."),
        ("Give the 3D location of {a} in the camera's frame.", "The 3D location of {a} is {x}."),
    ),
    "caption": (
        ("Describe the image briefly.", "{X}."),
        ("What does this picture show?", "{X}."),
        ("Give a short description of the image.", "{X}."),
    ),
    "what": (
        ("What is {a}?", "It is a {x}."),
        ("What kind of object is {a}?", "It is a {x}."),
        ("Name {a}.", "It is a {x}."),
    ),
    "presence": (
        ("Is there {a} in the image?", "{X}."),
        ("Can you see {a} in this picture?", "{X}."),
        ("Does the image show {a}?", "{X}."),
    ),
    "colour": (
        ("What colour is {a}?", "It is {x}."),
        ("Which colour does {a} have?", "It is {x}."),
        ("Name the colour of {a}.", "{A} is {x}."),
    ),
    "count": (
        ("How many {a} are there in the image?", "There are {x}."),
        ("Count the {a} in this picture.", "There are {x}."),
        ("What is the number of {a} in the image?", "The number is {x}."),
    ),
    "left_right": (
        ("In the image, is {a} to the left or to the right of {b}?", "{A} is to the {x} of {b}."),
        ("Looking at the picture, on which side of {b} is {a}, left or right?", "It is on the {x}."),
    ),
    "where": (
        ("Where in the image is {a}?", "{A} is in the {x} of the image."),
        ("In which part of the picture is {a}?", "It is in the {x} of the picture."),
    ),
}  # fmt: skip

SHORT: dict[str, tuple[str, ...]] = {
    "closer_to_camera": (
        "Which is nearer, {a} or {b}?",
        "Which is closer to the camera, {a} or {b}?",
        "Is {a} or {b} closer to the camera?",
    ),
    "closer_to_object": (
        "Which is nearer to {c}, {a} or {b}?",
        "Which is closer to {c}, {a} or {b}?",
        "Is {a} or {b} closer to {c}?",
    ),
    "facing_camera": (
        "Visible side of {a}?",
        "Which side do we see of {a}?",
        "Which side of {a} faces the camera?",
        "Which side of {a} is facing the camera?",
    ),
    "facing_object": (
        "Which is {c} facing, {a} or {b}?",
        "Is {c} facing {a} or {b}?",
        "Does {c} face {a} or {b}?",
    ),
    "same_direction": (
        "Same or different direction, {a} and {b}?",
        "Do {a} and {b} face the same or different directions?",
        "Are {a} and {b} facing the same or different directions?",
        "Is the direction of {a} and {b} the same or different?",
    ),
    "higher": (
        "Which is higher, {a} or {b}?",
        "Is {a} or {b} higher?",
        "Which has the higher center, {a} or {b}?",
    ),
    "on_which_side": (
        "On which side of {a} is {b}?",
        "Seen from {a}, on which side is {b}?",
        "{B} is on which side of {a}?",
    ),
    "depth": ("How far is {a}?", "How far is {a} from the camera?"),
    "distance": ("How far is {a} from {b}?", "How far apart are {a} and {b}?"),
    "azimuth": ("Azimuth of {a}?", "What is the azimuth of {a}?", "From which azimuth is {a} seen?"),
    "elevation": ("What is the elevation of {a}?", "From which elevation is {a} seen?"),
    "theta": ("What is the theta of {a}?",),
    "location": ("What is the 3D location of {a}?",),
    "caption": ("Describe the image.", "What is in the image?"),
    "what": ("What is {a}?", "Name {a}."),
    "presence": ("Is there {a}?", "Does the image show {a}?", "Is there {a} in the image?"),
    "colour": ("What colour is {a}?", "Which colour is {a}?"),
    "count": ("How many {a} are there?", "How many {a} are in the image?"),
    "left_right": ("Is {a} left or right of {b} in the image?", "In the image, is {a} left or right of {b}?"),
    "where": ("Where is {a}?", "Where in the image is {a}?", "In the image, where is {a}?"),
}

SAME_DIRECTION = {"same": "the same (or similar) direction", "different": "very different directions"}
LETTERS = "ABCDEFGHIJ"
LETTER_PROMPT = "Answer with the option's letter from the given choices directly."
# Azimuths every 45 degrees from the front towards the object's left.
AZIMUTH_WORDS = ("front", "front left", "left", "back left", "back", "back right", "right", "front right")
CELLS = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PLACES = {"indoor": "in a room", "outdoor": "on a street"}
_IRREGULAR = {"person": "people", "bus": "buses", "sheep": "sheep", "child": "children", "shelf": "shelves"}


def choose(kind: str, register: str, paraphrases: int, rng: np.random.Generator) -> Template:
    """A (question, answer) template of a type, among its first `paraphrases` (0 = all) wordings.

    Short answers are "{x}". Raises UserError for a type without wording.
    """
    table: tuple[Template, ...]
    if kind not in FULL:
        raise UserError(f"question type {kind!r} has no wording; choose from {', '.join(FULL)}")
    table = FULL[kind] if register == "full" else tuple((question, "{x}") for question in SHORT[kind])
    count = min(paraphrases, len(table)) if paraphrases > 0 else len(table)
    return table[int(rng.integers(count))] if count > 1 else table[0]


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def fill(template: str, **fields: str) -> str:
    """Fills {a}, {b} ... and their capitals {A}, {B} ..."""
    capitals = {key.upper(): capital(value) for key, value in fields.items()}
    return template.format(**fields, **capitals)


def article(noun: str) -> str:
    """ "a car", "an armchair"."""
    return ("an " if noun[:1].lower() in "aeiou" else "a ") + noun


def plural(noun: str) -> str:
    """The plural of the last word: "red cars", "people", "buses"."""
    head, _, last = noun.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{head} {last}" if head else last


def listing(items: list[str]) -> str:
    """ "a car, a dog and a bed"."""
    if len(items) <= 1:
        return "".join(items)
    return ", ".join(items[:-1]) + " and " + items[-1]


def metres(value: float, step: float = 0.0) -> str:
    """A length as people say it: centimetres below 1 m, 0.1 m below 10 m, 1 m above; or in `step`s."""
    if step > 0:
        return f"{round(value / step) * step:g} m"
    if value < 1:
        return f"{round(value * 100):d} centimeters"
    return f"{value:.1f} meters" if value < 10 else f"{value:.0f} meters"
