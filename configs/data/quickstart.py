"""Everything the quickstart trains and tests on, over one set of rendered pictures.

One TFDS dataset; every record of the train split carries captions, general, probing and spatial
questions, and a trainer picks by type, so pictures are rendered, and frozen features computed, once.
Objects are named by category, which is unique in each scene; wording is short.
"""

import ml_collections

from configs.data import families

_SHORT = {"register": "short", "region_style": "name", "azimuth_style": "words", "angle_step": 15.0}
# A dozen of the 25: a model this small binds a word to a place only after some thousand examples of the word.
_CATEGORIES = ("car", "bicycle", "motorcycle", "person", "dog", "cat", "chair", "sofa", "desk", "television",
               "refrigerator", "potted plant")
# Many candidates for what balance by category thins out most.
_QUOTAS = {"closer_to_camera": 8, "closer_to_object": 4, "facing_camera": 4, "facing_object": 4, "same_direction": 4,
           "higher": 8, "on_which_side": 4}


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "quickstart"
    config.seed = 0
    config.source = "rendered"
    # Small things on pedestals and furniture, so that "higher" is not told by the category.
    config.render = ml_collections.ConfigDict({
        "image_size": 168, "objects": (3, 4), "distinct_categories": True, "min_extent": 0.16,
        "stacked": 0.4, "raised": 0.4, "field_of_view": (45.0, 60.0), "categories": _CATEGORIES})
    config.splits = ml_collections.ConfigDict(
        {
            # Strict balance by category leaves few comparisons; only the test needs it.
            "train": {"count": 3200, "families": ["general", "probing", "spatial_ft"], "category_slack": 40},
            "test": {"count": 600, "families": ["spatial_vqa"]},
        }
    )
    config.families = ml_collections.ConfigDict(
        {
            "general": {**families.GENERAL, **_SHORT, "paraphrases": 1},
            "probing": {"types": {"depth": 4, "distance": 4, "azimuth": 4, "elevation": 2}, **_SHORT,
                        "paraphrases": 1},
            "spatial_ft": {"types": _QUOTAS, **_SHORT, "paraphrases": 1},
            "spatial_vqa": {"types": _QUOTAS, **_SHORT, "paraphrases": 1},
        }
    )
    return config
