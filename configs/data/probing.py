"""3DI-Pb: depth, distances, azimuth and elevation (paper, 3.3.1)."""

import ml_collections

from configs.data import families


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "probing"
    config.seed = 0
    config.source = "rendered"
    config.render = ml_collections.ConfigDict({"image_size": 336, "distinct_categories": False})
    config.splits = ml_collections.ConfigDict({"train": {"count": 2000, "families": ["probing"]}})
    config.families = ml_collections.ConfigDict({"probing": families.PROBING})
    return config
