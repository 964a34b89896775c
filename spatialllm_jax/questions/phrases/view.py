"""Open questions about the viewer's own left and right, above and below, front and behind, full register."""

_LOCATIONS = "Consider the real-world 3D locations of the objects. "

FULL: dict[str, tuple[tuple[str, str], ...]] = {
    "view_left_right": (
        (_LOCATIONS + "From the viewer's perspective, is {a} to the left or to the right of {b}?",
         "From the viewer's perspective, {a} is to the {x} of {b}."),
        ("As seen from the camera, on which side of {b} is {a}, left or right?",
         "{A} is on the {x} side of {b} as seen from the camera."),
        ("For the viewer, is {a} further to the left or further to the right than {b}?",
         "For the viewer, {a} is further to the {x} than {b}."),
        ("Standing where the camera stands, would you find {a} to the left or to the right of {b}?",
         "You would find {a} to the {x} of {b}."),
        ("To which side of {b} is {a} from the camera's point of view: left or right?",
         "From the camera's point of view, {a} is to the {x} of {b}."),
        ("Does the viewer have to turn left or right to look from {b} to {a}?",
         "To look from {b} to {a}, the viewer has to turn {x}."),
    ),
    "view_above_below": (
        (_LOCATIONS + "Is {a} above or below {b}?", "{A} is {x} {b}."),
        ("In the real world, is {a} located above or below {b}?", "{A} is located {x} {b}."),
        ("Compared with {b}, is {a} above or below?", "{A} is {x} {b}."),
        ("Along the vertical, does {a} lie above or below {b}?", "{A} lies {x} {b}."),
        ("Going by their true heights, is {a} above {b} or below it?", "{A} is {x} {b}."),
        ("Is {a} positioned above or below {b} in 3D space?", "{A} is positioned {x} {b}."),
    ),
    "view_front_behind": (
        (_LOCATIONS + "From the viewer's perspective, is {a} in front of or behind {b}?",
         "From the viewer's perspective, {a} is {x} {b}."),
        ("As seen from the camera, is {a} in front of {b} or behind it?", "As seen from the camera, {a} is {x} {b}."),
        ("Looking from the camera into the scene, is {a} in front of or behind {b}?", "{A} is {x} {b}."),
        ("For the viewer, does {a} stand in front of {b} or behind it?", "For the viewer, {a} stands {x} {b}."),
        ("Along the viewing direction, is {a} in front of or behind {b}?",
         "{A} is {x} {b} along the viewing direction."),
        ("From where the picture was taken, does {a} lie in front of or behind {b}?",
         "From there, {a} lies {x} {b}."),
    ),
}  # fmt: skip
