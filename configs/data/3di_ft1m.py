"""3DI-Ft1M: a million turns about 3D relations, as conversations (paper, 3.3.1 and Supplement A).

The paper takes OpenImages with estimated 3D boxes and Apollo Synthetic; any source serves, several at once too:

    python -m launch.generate --dataset 3di_ft1m --out data/3di_ft1m --formats tfds,llava \\
        --input scenes:openimages/scenes.jsonl --input apollo:ApolloSynthetic --exclude data/spatial_vqa
"""

import ml_collections

from configs.data import families


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "spatialllm_3di_ft1m"
    config.seed = 0
    config.source = "scenes"
    config.render = ml_collections.ConfigDict({"image_size": 336, "distinct_categories": False})
    config.pseudo_labels = ml_collections.ConfigDict(families.PSEUDO_LABELS)
    config.splits = ml_collections.ConfigDict({"train": {
        **families.SPLIT, "families": ["spatial_ft", "spatial_ft_names"], "questions": 1_000_000,
        "category_slack": 20}})
    config.families = ml_collections.ConfigDict({
        "spatial_ft": families.SPATIAL_FT,
        # Fewer of these: names must be unique in the picture.
        "spatial_ft_names": {**families.SPATIAL_FT, "region_style": "name", "max_per_image": 4}})
    return config
