"""SpatialVQA, rebuilt: 1,323 questions of seven types, answers even (paper, 3.2.2 and Supplement B).

From the test splits of Omni3D's sub-datasets but Objectron; each contributes alike as long as it has clear cases:

    python -m launch.generate --dataset spatial_vqa --out data/spatial_vqa --formats tfds,tsv \\
        --input Omni3D/KITTI_test.json --input Omni3D/nuScenes_test.json --input Omni3D/SUNRGBD_test.json \\
        --input Omni3D/ARKitScenes_test.json --input Omni3D/Hypersim_test.json
"""

import ml_collections

from configs.data import families

# 420 about distance, 370 about orientation, 533 about relations, as in the paper.
QUOTAS = {"closer_to_camera": 210, "closer_to_object": 210, "facing_camera": 185, "facing_object": 185,
          "same_direction": 178, "higher": 178, "on_which_side": 177}


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "spatial_vqa"
    config.seed = 0
    config.source = "omni3d"
    config.render = ml_collections.ConfigDict({"image_size": 336, "distinct_categories": False})
    config.splits = ml_collections.ConfigDict({"test": {
        **families.SPLIT, "families": ["spatial_vqa"], "quotas": QUOTAS, "even_sources": True}})
    config.families = ml_collections.ConfigDict({"spatial_vqa": families.SPATIAL_VQA})
    return config
