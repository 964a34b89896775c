"""Which categories have a semantic front, per source, and why; and the names questions use.

Every annotated box has a local +x axis, but it means "the front" only where annotators aligned it with
the object's own front. Orientation questions are asked of nothing else.
"""

from __future__ import annotations

# Spellings of the annotations -> words that questions use.
NAMES = {
    "aeroplane": "airplane",
    "ax": "axe",
    "babby_buggy": "baby buggy",
    "bicycle_built_for_two": "tandem bicycle",
    "billbard_table": "billiard table",
    "cellphone": "cell phone",
    "diningtable": "dining table",
    "golfcart": "golf cart",
    "hand_barrow": "wheelbarrow",
    "hand_mower": "lawn mower",
    "headphone": "headphones",
    "highchair": "high chair",
    "interphone": "walkie-talkie",
    "jinrikisha": "rickshaw",
    "life_buoy": "life buoy",
    "millwheel": "mill wheel",
    "motorbike": "motorcycle",
    "mouse": "computer mouse",
    "night_stand": "night stand",
    "person_sitting": "person sitting",
    "refridgerator": "refrigerator",
    "sax": "saxophone",
    "skate": "roller skate",
    "speaker": "loudspeaker",
    "tennis_table": "table tennis table",
    "traffic_cone": "traffic cone",
    "trolley_bus": "trolleybus",
    "tub": "bathtub",
    "tv": "television",
    "tvmonitor": "television monitor",
    "washer": "washing machine",
}

# Collective classes that no question can name.
NAMELESS = ("misc", "other", "other furniture", "furniture", "void", "otherprop", "otherstructure", "unknown")


def common_name(category: str) -> str:
    """The name questions use: lower case, spaces for underscores, common spelling."""
    name = category.strip().lower()
    return NAMES.get(name, name.replace("_", " "))


def _for_reasons(groups: dict[str, str]) -> dict[str, str]:
    """Reason -> spellings, separated by blanks, turned into name -> reason."""
    return {common_name(word): reason for reason, words in groups.items() for word in words.split()}


_HEADING = "heading annotated as the direction of travel or of the body"
_ALIGNED = "annotators turned the box to the side one uses it from"

# ImageNet3D's 200 categories. Azimuth 0 is the front of the category's CAD models, which are all stored
# facing the same way; a category is in here where that way is also what a person calls its front. Judged
# on the renderings of the models (up to two of each) that the dataset's repository shows.
_IMAGENET3D = _for_reasons({
    "direction of travel": "aeroplane agitator_truck airship ambulance babby_buggy bicycle bicycle_built_for_two "
    "boat bumper_car bus car cart dune_buggy fire_truck forklift frigate garbage_truck glider go_kart golfcart "
    "hand_barrow hand_mower harvester jinrikisha motorbike recreational_vehicle riding_mower school_bus scooter "
    "segway shopping_cart snowmobile tank tractor train tricycle trolley_bus trolleybus wheelchair",
    "the side one sits down on or lies down from": "bed bench chair highchair sofa toilet",
    "the side with doors, drawers or shelves": "bookshelf cabinet dishwasher filing_cabinet mailbox microwave "
    "refrigerator vending_machine washer washing_machine",
    "the side one uses it from": "coffee_maker computer oscilloscope piano printer sink",
    "the side with the screen, the keys or the dial": "calculator cellphone clock interphone laptop pay_phone "
    "remote_control telephone tvmonitor watch",
    "the side with the lens, the cone, the dish or the writing": "camcorder camera megaphone projector "
    "satellite_dish sign speaker",
    "the side that is in front when it is worn": "cap eyeglasses helmet shoe skate",
    "the side with the strings": "guitar violin",
    "the end with the buttons": "mouse",
})  # fmt: skip
_IMAGENET3D_NONE = _for_reasons({
    "round about its axis": "ashtray barbell baseball_bat basket battery beaker bottle bowl bowling_pin bucket can "
    "cone cooker cooling_tower cup curling_stone dumbbell erlenmeyer_flask fan frisbee funnel hot_air_balloon "
    "hourglass jar life_buoy light_bulb lipstick microphone pen pencil plate pot punching_bag road_pole "
    "salt_or_pepper_shaker sombrero sundial syringe trash_bin trophy tub whisk wine_glass yurt",
    "front and back, or both ends, look alike": "billbard_table billiard_table blackboard diningtable door "
    "fish_tank headphone pillow radiator skateboard suitcase table_tennis_table tennis_table unicycle",
    "a wheel or rotor, alike from both sides": "ferris_wheel millwheel wind_turbine",
    "held in the hand: people do not agree on a front": "ax axe bicycle_pump bow boxing_glove chain_saw comb "
    "combination_lock crutch eraser fire_extinguisher flashlight fork grinder hacksaw hair_dryer hammer "
    "hockey_stick iron key knife lighter magnifier micrometer padlock paintbrush pan power_drill racket rifle "
    "scissors screwdriver shaver shovel spoon stapler toothbrush trowel",
    "spout or handle to the side: people do not agree on a front": "faucet kettle teapot",
    "played in several poses: people do not agree on a front": "chime french_horn harp oboe sax trumpet",
    "its one model is a bucket": "basketball_hoop",
    "its models differ in shape, so the front is not one thing": "backpack desk_lamp keyboard sewing_machine slipper "
    "stove toaster treadmill",
})  # fmt: skip

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
    "apollo": dict.fromkeys(
        ("car", "pickup truck", "truck", "van", "bus", "cyclist", "motorcyclist", "pedestrian"), _HEADING),
    "imagenet3d": _IMAGENET3D,
}  # fmt: skip

# Source -> category -> why it has none, where one might expect otherwise; "*" stands for all.
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
    "imagenet3d": _IMAGENET3D_NONE,
    "bop": {"*": "axes of the models are those of a scanner or a CAD program"},
}


def has_front(source: str, category: str) -> bool:
    """Whether `category` (as `common_name` gives it) has a semantic front in `source`."""
    return category in FRONTS.get(source, {})
