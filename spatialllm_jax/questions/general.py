"""Stand-ins for CC558K and Mix665K: what a picture says without 3D.

Nothing here reads a 3D box: categories, colours and 2D boxes only, so that a model trained on these
questions alone is a real baseline "without 3D data".
"""

from __future__ import annotations

from collections import Counter

from spatialllm_jax.questions import wording
from spatialllm_jax.questions.candidates import Case, View

# Left of / right of: the 2D centres differ by this share of the width at least.
_SIDE_GAP = 0.08
# "Where": the 2D centre keeps this far from the borders of the nine cells.
_CELL_GUARD = 0.02


def caption(view: View, quota: int) -> list[Case]:
    """One sentence that names the objects from left to right, and the place."""
    scene = view.scene
    if not scene.objects:
        return []
    order = sorted(range(len(scene.objects)), key=lambda i: view.names.boxes[i][0] + view.names.boxes[i][2])
    counts = Counter(scene.objects[i].phrase for i in order)
    items = [
        wording.article(phrase) if count == 1 else f"{_number(count)} {wording.plural(phrase)}"
        for phrase, count in counts.items()
    ]
    place = wording.PLACES.get(scene.setting, "")
    text = wording.listing(items) + (f" {place}" if place else "")
    return [Case("caption", (), "", text=text)]


def what(view: View, quota: int) -> list[Case]:
    """What the object of a colour, in a region or in a part of the image is."""
    scene, config = view.scene, view.config
    colours = Counter(o.attributes.get("colour", "") for o in scene.objects)
    cells = Counter(cell for cell in map(_cell, view.names.boxes) if cell)
    clear = not scene.hidden
    cases = []
    for i in view.names.usable:
        category = scene.objects[i].category
        colour = scene.objects[i].attributes.get("colour", "")
        cell = _cell(view.names.boxes[i])
        subjects = []
        if clear and colour and colours[colour] == 1:
            subjects.append(f"the {colour} object")
        if clear and cell and cells[cell] == 1 and config.region_style == "name":
            subjects.append(f"the object in the {cell}")
        if config.region_style != "name":
            subjects.append("")  # "the object in Region [0]"
        if not subjects:
            continue
        subject = subjects[int(view.rng.integers(len(subjects)))]
        options = tuple(config.categories)
        right = options.index(category) if category in options else None
        pointed = () if subject else (i,)
        cases.append(Case("what", pointed, category, options if right is not None else (), right, category,
                          subject=subject, noun="object"))  # fmt: skip
    return cases


def presence(view: View, quota: int) -> list[Case]:
    """Is there a ...? As many cases answered no as yes; absent categories come from the config."""
    scene = view.scene
    if "*" in scene.hidden:
        return []
    present = sorted({scene.objects[i].category for i in view.names.usable})
    known = {o.category for o in scene.objects} | set(scene.hidden)
    absent = [c for c in view.config.categories if c not in known]
    count = min(len(present), len(absent), quota)
    cases = []
    for category in view.rng.permutation(present)[:count].tolist() if present else []:
        cases.append(_presence(category, True))
    for category in view.rng.permutation(absent)[:count].tolist() if absent else []:
        cases.append(_presence(category, False))
    return cases


def colour(view: View, quota: int) -> list[Case]:
    """The colour of an object; by name only when its category alone names it."""
    scene, config = view.scene, view.config
    counts = Counter(o.category for o in scene.objects)
    cases = []
    for i in view.singles():
        o = scene.objects[i]
        value = o.attributes.get("colour", "")
        if not value or (config.region_style == "name" and counts[o.category] > 1):
            continue
        options = tuple(config.colours)
        right = options.index(value) if value in options else None
        cases.append(Case("colour", (i,), value, options if right is not None else (), right, value,
                          noun=o.category))  # fmt: skip
    return cases


def count(view: View, quota: int) -> list[Case]:
    """How many objects of a category, or in all, there are."""
    scene = view.scene
    if "*" in scene.hidden:
        return []
    counts = Counter(o.category for o in scene.objects)
    cases = []
    for category, number in sorted(counts.items()):
        if category not in scene.hidden and number <= 10:
            cases.append(_count(wording.plural(category), number))
    if not scene.hidden and 0 < len(scene.objects) <= 10:
        cases.append(_count("objects", len(scene.objects)))
    return cases


def left_right(view: View, quota: int) -> list[Case]:
    """Left or right of another object in the image plane; objects (a, b)."""
    cases = []
    for a, b in view.pairs():
        ax, bx = _center(view.names.boxes[a])[0], _center(view.names.boxes[b])[0]
        if abs(ax - bx) < _SIDE_GAP:
            continue
        right = 0 if ax < bx else 1
        cases.append(Case("left_right", (a, b), ("left", "right")[right], ("left", "right"), right,
                          quantities={"x_first": ax, "x_second": bx}, margin=abs(ax - bx)))  # fmt: skip
    return cases


def where(view: View, quota: int) -> list[Case]:
    """Which of nine cells of the image holds the centre of an object's 2D box."""
    options = tuple(cell for row in wording.CELLS for cell in row)
    cases = []
    for i in view.singles():
        cell = _cell(view.names.boxes[i])
        if cell:
            x, y = _center(view.names.boxes[i])
            cases.append(Case("where", (i,), cell, options, options.index(cell), quantities={"x": x, "y": y}))
    return cases


def _presence(category: str, answer: bool) -> Case:
    word = "yes" if answer else "no"
    return Case("presence", (), word, ("yes", "no"), 0 if answer else 1,
                quantities={"present": float(answer)}, subject=wording.article(category))  # fmt: skip


def _count(noun: str, number: int) -> Case:
    text = _number(number)
    return Case("count", (), text, text=text, quantities={"count": float(number)}, subject=noun)


def _number(value: int) -> str:
    return wording.NUMBERS[value] if value < len(wording.NUMBERS) else str(value)


def _center(box: tuple[float, float, float, float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _cell(box: tuple[float, float, float, float]) -> str:
    """The cell of a 2D box's centre, or "" near a border."""
    x, y = (min(max(v, 0.0), 0.999) for v in _center(box))
    for value in (x, y):
        if min(abs(value - 1 / 3), abs(value - 2 / 3)) < _CELL_GUARD:
            return ""
    return wording.CELLS[int(y * 3)][int(x * 3)]
