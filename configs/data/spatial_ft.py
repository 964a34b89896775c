"""3DI-Ft: spatial conversations for instruction tuning (paper, 3.3.1)."""

import ml_collections

from configs.data import families


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "spatial_ft"
    config.seed = 0
    config.source = "rendered"
    config.render = ml_collections.ConfigDict({"image_size": 336, "distinct_categories": False})
    config.splits = ml_collections.ConfigDict({"train": {"count": 2000, "families": ["spatial_ft"]}})
    config.families = ml_collections.ConfigDict({"spatial_ft": families.SPATIAL_FT})
    return config
