"""Splits and question families that several datasets share; types: most questions of it per image."""

import dataclasses

from spatialllm_jax.questions.types import SPATIAL_TYPES, VIEW_TYPES
from spatialllm_jax.sources.pseudo_labels.config import PseudoLabelConfig

# Everything that a split can be told, at its default (`data.selection`, `data.generation.SplitPlan`).
SPLIT = {"count": 0, "quotas": {}, "questions": 0, "category_slack": 2, "near_duplicates": 4, "keep_empty": False,
         "even_sources": False}
# Rendered scenes are told apart by their seeds: no look for near-duplicates, and no picture is left out.
RENDERED_SPLIT = {**SPLIT, "near_duplicates": 0, "keep_empty": True}
# Stand-in for CC558K: one caption per image.
CAPTIONS = {"types": {"caption": 1}}
# Stand-in for Mix665K: ordinary visual questions without 3D.
GENERAL = {
    "types": {"caption": 1, "what": 3, "presence": 2, "colour": 3, "count": 2, "left_right": 4, "where": 3}
}
# 3DI-Pb: fundamental 3D properties.
PROBING = {"types": {"depth": 3, "distance": 3, "azimuth": 4, "elevation": 2}}
# 3DI-Pb of ImageNet3D, mostly one object per picture and no metres; the side that faces the camera in words.
PROBING_VIEWPOINTS = {"types": {"azimuth": 2, "elevation": 1, "theta": 1, "facing_camera": 1, "depth": 2,
                                "distance": 2},
                      "forms": {"which": 2.0, "choice": 1.0, "yes_no": 1.0}}
# 3DI-Ft: the seven types of SpatialVQA and the viewer's own relations, as conversations of up to ten turns.
SPATIAL_FT = {"types": {**dict.fromkeys(SPATIAL_TYPES, 3), **dict.fromkeys(VIEW_TYPES, 1)},
              "forms": {"which": 1.0, "choice": 1.0, "yes_no": 1.0}, "region_labels": "conversation",
              "max_per_image": 10}
# The benchmark: fewer questions per image, so that more images are seen.
SPATIAL_VQA = {"types": dict.fromkeys(SPATIAL_TYPES, 1)}

# Largest length (along the front), height and width in metres of everyday things: they bound what a picture does not
# show of them (docs/pseudo_labels.md). Common knowledge, on the generous side; not fitted to any data.
LARGEST = {
    "airplane": (75.0, 25.0, 80.0), "armchair": (1.1, 1.2, 1.2), "bed": (2.3, 1.6, 2.2), "bench": (0.9, 1.2, 3.0),
    "bicycle": (2.0, 1.3, 0.9), "bird": (0.6, 0.6, 0.5), "boat": (30.0, 15.0, 9.0), "bookshelf": (0.6, 2.6, 2.5),
    "bottle": (0.15, 0.4, 0.15), "bus": (13.0, 3.6, 2.8), "cabinet": (0.9, 2.6, 2.5), "camera": (0.4, 0.3, 0.3),
    "car": (5.5, 2.2, 2.2), "cat": (0.8, 0.5, 0.4), "chair": (0.9, 1.3, 0.9), "computer keyboard": (0.3, 0.1, 0.6),
    "computer monitor": (0.4, 0.8, 1.0), "couch": (1.3, 1.2, 3.5), "cow": (2.8, 1.8, 1.1), "cup": (0.15, 0.2, 0.15),
    "desk": (1.1, 1.3, 2.4), "dining table": (3.0, 1.0, 3.0), "dog": (1.4, 1.1, 0.6), "elephant": (7.5, 4.0, 3.5),
    "horse": (2.9, 2.6, 1.2), "laptop": (0.5, 0.5, 0.5), "motorcycle": (2.6, 1.7, 1.1), "nightstand": (0.7, 0.9, 0.9),
    "person": (1.2, 2.2, 1.2), "refrigerator": (1.0, 2.2, 1.2), "sheep": (1.6, 1.3, 0.9), "shoe": (0.4, 0.3, 0.2),
    "stool": (0.6, 1.2, 0.6), "suitcase": (0.5, 0.9, 0.8), "table": (3.0, 1.2, 3.0), "television": (0.5, 1.4, 2.2),
    "toilet": (0.9, 1.1, 0.6), "traffic light": (0.6, 1.5, 0.6), "train": (30.0, 4.8, 3.6), "truck": (18.0, 4.5, 3.0),
    "van": (7.5, 3.2, 2.5), "wheelchair": (1.3, 1.2, 0.8),
}
# Categories whose front a person would agree on.
FRONTED = ("airplane", "armchair", "bed", "bench", "bicycle", "bird", "boat", "bookshelf", "bus", "cabinet", "camera",
           "car", "cat", "chair", "computer keyboard", "computer monitor", "couch", "cow", "desk", "dog", "elephant",
           "horse", "laptop", "motorcycle", "nightstand", "person", "refrigerator", "sheep", "shoe", "television",
           "toilet", "traffic light", "train", "truck", "van", "wheelchair")
# Plain pictures as a source: every setting of `sources.pseudo_labels`, to be overridden from the command line.
PSEUDO_LABELS = dataclasses.asdict(PseudoLabelConfig(vocabulary=tuple(LARGEST), fronts=FRONTED, sizes=LARGEST))
