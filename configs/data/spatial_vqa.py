"""SpatialVQA, rebuilt: the seven types with margins and even answers (paper, 3.2.2 and Supplement B)."""

import ml_collections

from configs.data import families


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "spatial_vqa"
    config.seed = 0
    config.source = "rendered"
    config.render = ml_collections.ConfigDict({"image_size": 336, "distinct_categories": False})
    config.splits = ml_collections.ConfigDict({"test": {"count": 600, "families": ["spatial_vqa"]}})
    config.families = ml_collections.ConfigDict({"spatial_vqa": families.SPATIAL_VQA})
    return config
