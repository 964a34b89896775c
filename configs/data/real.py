"""What `launch.real` trains and tests on: rendered scenes of Sweet Home 3D's meshes.

One TFDS dataset, pictures rendered once. Objects are named by category, so that the pictures need no drawn
marks and their features can be stored.
"""

import ml_collections

from configs.data import families

_NAMED = {"region_style": "name", "azimuth_style": "words", "angle_step": 15.0, "paraphrases": 2}


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "real"
    config.seed = 0
    config.source = "rendered"
    config.render = ml_collections.ConfigDict({
        "image_size": 168, "objects": (2, 4), "distinct_categories": True, "assets": "sweethome3d",
        "mesh_folder": "runs/real/meshes", "mesh_cache": "runs/real/mesh_cache", "mesh_max_faces": 8000,
        "field_of_view": (45.0, 60.0)})
    config.splits = ml_collections.ConfigDict({
        "train": {**families.RENDERED_SPLIT, "count": 1000, "families": ["captions", "probing"]},
        "test": {**families.RENDERED_SPLIT, "count": 48, "families": ["captions", "probing", "spatial_vqa"]}})
    config.families = ml_collections.ConfigDict({
        "captions": families.CAPTIONS,
        "probing": {**families.PROBING, **_NAMED},
        "spatial_vqa": {**families.SPATIAL_VQA, **_NAMED}})
    return config
