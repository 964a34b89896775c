"""3DI-Pb-IN166K: probing questions about ImageNet3D's pictures, for alignment (paper, 3.3.1 and Supplement A).

    python -m launch.generate --dataset 3di_pb_in166k --input ImageNet3D --out data/3di_pb_in166k

The paper asks about azimuth and elevation (and depth and distances, which ImageNet3D's units cannot give in metres)
and does not say how many of each; the mix is ours. `--source rendered` makes the same questions, and metric ones,
without ImageNet3D.
"""

import ml_collections

from configs.data import families


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "spatialllm_3di_pb_in166k"
    config.seed = 0
    config.source = "imagenet3d"
    config.render = ml_collections.ConfigDict({"image_size": 336, "distinct_categories": False})
    config.splits = ml_collections.ConfigDict({"train": {
        **families.SPLIT, "families": ["probing"], "questions": 166_000}})
    config.families = ml_collections.ConfigDict({"probing": families.PROBING_VIEWPOINTS})
    return config
