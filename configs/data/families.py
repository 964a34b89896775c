"""Splits and question families that several datasets share; types: most questions of it per image."""

from spatialllm_jax.questions.types import SPATIAL_TYPES, VIEW_TYPES

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
