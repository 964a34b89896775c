"""Everything the quickstart trains and tests on, over one set of rendered pictures.

One TFDS dataset; every record of the train split carries captions, general, probing and spatial
questions, and a trainer picks by type, so pictures are rendered, and frozen features computed, once.
Objects are named by category, which is unique in each scene; wording is short.
"""

import ml_collections

from configs.data import families

_SHORT = {"register": "short", "region_style": "name", "azimuth_style": "words", "angle_step": 15.0}


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "quickstart"
    config.seed = 0
    config.source = "rendered"
    config.render = ml_collections.ConfigDict({"image_size": 224, "objects": (3, 4), "distinct_categories": True})
    config.splits = ml_collections.ConfigDict(
        {
            "train": {"count": 4000, "families": ["general", "probing", "spatial_ft"]},
            "test": {"count": 600, "families": ["spatial_vqa"]},
        }
    )
    config.families = ml_collections.ConfigDict(
        {
            "general": {**families.GENERAL, **_SHORT},
            "probing": {
                "types": {"depth": 4, "distance": 4, "azimuth": 4, "elevation": 2},
                **_SHORT,
            },
            "spatial_ft": {"types": dict.fromkeys(families.SPATIAL_VQA["types"], 4), **_SHORT},
            "spatial_vqa": {"types": dict.fromkeys(families.SPATIAL_VQA["types"], 2), **_SHORT, "paraphrases": 1},
        }
    )
    return config
