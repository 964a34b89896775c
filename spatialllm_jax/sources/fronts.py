"""Which categories have a semantic front, per source, and why; and the names questions use.

Every annotated box has a local +x axis, but it means "the front" only where annotators aligned it with
the object's own front. Orientation questions are asked of nothing else.
"""

from __future__ import annotations

_HEADING = "heading annotated as the direction of travel or of the body"
_ALIGNED = "annotators turned the box to the side one uses it from"

# Source -> category -> reason. Sources that are missing here have no semantic fronts at all.
FRONTS: dict[str, dict[str, str]] = {
    "kitti": dict.fromkeys(("car", "van", "truck", "pedestrian", "person sitting", "cyclist"), _HEADING),
    "nuscenes": dict.fromkeys(
        ("car", "truck", "bus", "trailer", "construction vehicle", "motorcycle", "bicycle", "cyclist",
         "motorcyclist", "pedestrian", "van"), _HEADING),
    "sunrgbd": {
        **dict.fromkeys(("chair", "sofa", "toilet", "desk", "bookcase", "cabinet", "dresser", "refrigerator",
                         "oven", "stove", "television", "monitor", "laptop", "printer", "microwave"), _ALIGNED),
        "bed": "front is the foot of the bed",
    },
}  # fmt: skip

# Source -> category -> why it has none, where one might expect otherwise.
NO_FRONT: dict[str, dict[str, str]] = {
    "kitti": {"tram": "both ends look alike", "misc": "a mixed class (trailers, Segways)"},
    "nuscenes": {"barrier": "the axis is geometric", "traffic cone": "round"},
    "sunrgbd": {
        "night stand": "the drawer side is annotated unevenly",
        "table": "no side to use it from",
        "lamp": "round",
        "pillow": "no front",
    },
    "arkitscenes": {"*": "boxes are oriented, but their heading is not semantic"},
    "hypersim": {"*": "boxes come from geometry; axes carry no meaning"},
    "objectron": {"*": "left out, as in SpatialVQA"},
}

# Spellings of the annotations -> words that questions use.
NAMES = {
    "refridgerator": "refrigerator",
    "tv": "television",
    "night_stand": "night stand",
    "person_sitting": "person sitting",
    "traffic_cone": "traffic cone",
}

# Collective classes that no question can name.
NAMELESS = ("misc", "other", "other furniture", "furniture", "void", "otherprop", "otherstructure", "unknown")


def has_front(source: str, category: str) -> bool:
    """Whether `category` (as `common_name` gives it) has a semantic front in `source`."""
    return category in FRONTS.get(source, {})


def common_name(category: str) -> str:
    """The name questions use: lower case, spaces for underscores, common spelling."""
    name = category.strip().lower()
    return NAMES.get(name, name.replace("_", " "))
