"""Ordinary visual questions: the stand-in for Mix665K (stage 2 without 3D)."""

import ml_collections

from configs.data import families


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "general"
    config.seed = 0
    config.source = "rendered"
    config.render = ml_collections.ConfigDict({"image_size": 336, "distinct_categories": False})
    config.splits = ml_collections.ConfigDict({"train": {
        **families.RENDERED_SPLIT, "count": 2000, "families": ["general"]}})
    config.families = ml_collections.ConfigDict({"general": families.GENERAL})
    return config
