"""3DI-Pb-OI1M: probing questions about OpenImages' pictures (paper, 3.3.1 and Supplement A).

OpenImages has no 3D annotation: the paper labels it with foundation models and a pose estimator. So does the source
`pseudo_labels` (docs/pseudo_labels.md); scenes that are labelled already come as scene files (docs/conventions.md):

    python -m launch.generate --dataset 3di_pb_oi1m --input openimages/train --out data/3di_pb_oi1m --engine ray
    python -m launch.generate --dataset 3di_pb_oi1m --input scenes:openimages/scenes.jsonl --out data/3di_pb_oi1m
"""

import ml_collections

from configs.data import families


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "spatialllm_3di_pb_oi1m"
    config.seed = 0
    config.source = "pseudo_labels"
    config.render = ml_collections.ConfigDict({"image_size": 336, "distinct_categories": False})
    config.pseudo_labels = ml_collections.ConfigDict(families.PSEUDO_LABELS)
    config.splits = ml_collections.ConfigDict({"train": {
        **families.SPLIT, "families": ["probing"], "questions": 1_000_000}})
    config.families = ml_collections.ConfigDict({"probing": families.PROBING})
    return config
