"""Stand-ins for CC558K and Mix665K: what a picture says without 3D, full register.

{an} is {x} with an article; {are} is "is" for one and "are" for more.
"""

FULL: dict[str, tuple[tuple[str, str], ...]] = {
    "caption": (
        ("Describe the image briefly.", "{X}."),
        ("What does this picture show?", "{X}."),
        ("Give a short description of the image.", "{X}."),
        ("What can be seen in the picture?", "{X}."),
        ("Summarize the image in one sentence.", "{X}."),
        ("Write a caption for this picture.", "{X}."),
    ),
    "what": (
        ("What is {a}?", "It is {an}."),
        ("What kind of object is {a}?", "It is {an}."),
        ("Name {a}.", "It is {an}."),
        ("Which category does {a} belong to?", "It is {an}."),
        ("Can you tell what {a} is?", "It is {an}."),
    ),
    "presence": (
        ("Is there {a} in the image?", "{X}."),
        ("Can you see {a} in this picture?", "{X}."),
        ("Does the image show {a}?", "{X}."),
        ("Is {a} visible in the picture?", "{X}."),
        ("Does this picture contain {a}?", "{X}."),
    ),
    "colour": (
        ("What colour is {a}?", "It is {x}."),
        ("Which colour does {a} have?", "It is {x}."),
        ("Name the colour of {a}.", "{A} is {x}."),
        ("What is the colour of {a}?", "{A} is {x}."),
        ("In which colour is {a} shown?", "{A} is {x}."),
    ),
    "count": (
        ("How many {a} are there in the image?", "There {are} {x}."),
        ("Count the {a} in this picture.", "There {are} {x}."),
        ("What is the number of {a} in the image?", "The number is {x}."),
        ("How many {a} can you see?", "There {are} {x}."),
        ("How many {a} does the picture show?", "The picture shows {x}."),
    ),
    "left_right": (
        ("In the image, is {a} to the left or to the right of {b}?", "{A} is to the {x} of {b}."),
        ("Looking at the picture, on which side of {b} is {a}, left or right?", "{A} is on the {x} side of {b}."),
        ("In the picture, does {a} appear to the left or to the right of {b}?", "{A} appears to the {x} of {b}."),
        ("Is {a} shown left or right of {b} in the image?", "{A} is shown {x} of {b}."),
        ("Within the image, is {a} further left or further right than {b}?", "{A} is further {x} than {b}."),
    ),
    "where": (
        ("Where in the image is {a}?", "{A} is in the {x} of the image."),
        ("In which part of the picture is {a}?", "{A} is in the {x} of the picture."),
        ("In which part of the image does {a} appear?", "{A} appears in the {x} of the image."),
        ("Where does the picture show {a}?", "The picture shows {a} in the {x}."),
        ("Locate {a} in the image.", "{A} is in the {x} of the image."),
    ),
}  # fmt: skip
