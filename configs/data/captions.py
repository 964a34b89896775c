"""Captions of rendered scenes: the stand-in for CC558K (stage 1 without 3D)."""

import ml_collections

from configs.data import families


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "captions"
    config.seed = 0
    config.source = "rendered"
    config.render = ml_collections.ConfigDict({"image_size": 336, "distinct_categories": False})
    config.splits = ml_collections.ConfigDict({"train": {
        **families.RENDERED_SPLIT, "count": 2000, "families": ["captions"]}})
    config.families = ml_collections.ConfigDict({"captions": families.CAPTIONS})
    return config
