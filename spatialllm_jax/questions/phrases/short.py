"""Wordings of few, frequent words whose answer is the bare answer, so that a tiny word-level model can read them.

`CLAIMS` are answered by "yes" or "no".
"""

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
    "view_left_right": (
        "For us, is {a} left or right of {b}?",
        "Seen from the camera, is {a} left or right of {b}?",
        "Is {a} left or right of {b} for the viewer?",
    ),
    "view_above_below": (
        "Is {a} above or below {b}?",
        "Is {a} above {b} or below {b}?",
        "In the real world, is {a} above or below {b}?",
    ),
    "view_front_behind": (
        "For us, is {a} in front of or behind {b}?",
        "Seen from the camera, is {a} in front of or behind {b}?",
        "Is {a} in front of or behind {b} for the viewer?",
    ),
}

CLAIMS: dict[str, tuple[str, ...]] = {
    "closer_to_camera": ("Is {x} nearer than {y}?", "Is {x} closer to the camera than {y}?",
                         "Is {y} farther from the camera than {x}?"),
    "closer_to_object": ("Is {x} nearer to {c} than {y}?", "Is {x} closer to {c} than {y}?"),
    "facing_camera": ("Do we see the {x} side of {a}?", "Is the {x} side of {a} facing the camera?",
                      "Does the {x} side of {a} face the camera?"),
    "facing_object": ("Is {c} facing {x} and not {y}?", "Does {c} face {x} and not {y}?"),
    "same_direction": ("Do {a} and {b} face {x}?", "Are {a} and {b} facing {x}?"),
    "higher": ("Is {x} higher than {y}?", "Is {y} lower than {x}?"),
    "on_which_side": ("Seen from {a}, is {b} on the {x} side?", "From the view of {a}, is {b} on the {x} side?"),
    "view_left_right": ("For us, is {a} {x} of {b}?", "Seen from the camera, is {a} {x} of {b}?"),
    "view_above_below": ("Is {a} {x} {b}?", "In the real world, is {a} {x} {b}?"),
    "view_front_behind": ("For us, is {a} {x} {b}?", "Seen from the camera, is {a} {x} {b}?"),
    "left_right": ("Is {a} {x} of {b} in the image?", "In the image, is {a} {x} of {b}?"),
}  # fmt: skip
