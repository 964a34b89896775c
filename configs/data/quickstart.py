"""Everything the quickstart trains and tests on, over one set of rendered pictures.

One TFDS dataset; every record of the train split carries captions, general, probing and spatial
questions, and a trainer picks by type, so pictures are rendered, and frozen features computed, once.
Objects are named by category, which is unique in each scene; wording is short.
"""

import ml_collections

from configs.data import families

_SHORT = {"register": "short", "region_style": "name", "azimuth_style": "words", "angle_step": 15.0}
# Eleven of the 25, all with a front and of like size: a model this small must see a word often, and where sizes
# differ much the larger thing is always the farther one.
_CATEGORIES = ("car", "bicycle", "motorcycle", "person", "dog", "horse", "chair", "sofa", "desk", "television",
               "refrigerator")
# Many candidates for what balance by category thins out most.
_QUOTAS = {"closer_to_camera": 8, "closer_to_object": 4, "facing_camera": 4, "facing_object": 4, "same_direction": 4,
           "higher": 8, "on_which_side": 4}
_TEST_QUOTAS = {**_QUOTAS, "same_direction": 2, "on_which_side": 2}


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "quickstart"
    config.seed = 0
    config.source = "rendered"
    # Few and large objects: at 168 px, which way a smaller one faces is lost on the encoders (docs/quickstart.md).
    # Any of them may stand on a pedestal, so that "higher" is not told by the category.
    config.render = ml_collections.ConfigDict({
        "image_size": 168, "objects": (2, 4), "distinct_categories": True, "min_extent": 0.22, "max_extent": 0.8,
        "stacked": 0.0, "raised": 0.25, "raise_all": True, "field_of_view": (45.0, 60.0), "categories": _CATEGORIES})
    config.splits = ml_collections.ConfigDict(
        {
            # Strict balance by category leaves few comparisons; only the test needs it.
            "train": {**families.RENDERED_SPLIT, "count": 4800, "families": ["general", "probing", "spatial_ft"],
                      "category_slack": 100},
            "test": {**families.RENDERED_SPLIT, "count": 1000, "families": ["spatial_vqa"], "category_slack": 1},
        }
    )
    config.families = ml_collections.ConfigDict(
        {
            "general": {**families.GENERAL, **_SHORT, "paraphrases": 1},
            "probing": {"types": {"depth": 4, "distance": 4, "azimuth": 4, "elevation": 2}, **_SHORT,
                        "paraphrases": 1},
            "spatial_ft": {"types": _QUOTAS, **_SHORT, "paraphrases": 1},
            "spatial_vqa": {"types": _TEST_QUOTAS, **_SHORT, "paraphrases": 1},
        }
    )
    return config
