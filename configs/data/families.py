"""Question families that several datasets share: type -> most questions of it per image."""

from spatialllm_jax.questions.types import SPATIAL_TYPES

# Stand-in for CC558K: one caption per image.
CAPTIONS = {"types": {"caption": 1}}
# Stand-in for Mix665K: ordinary visual questions without 3D.
GENERAL = {
    "types": {"caption": 1, "what": 3, "presence": 2, "colour": 3, "count": 2, "left_right": 4, "where": 3}
}
# 3DI-Pb: fundamental 3D properties.
PROBING = {"types": {"depth": 3, "distance": 3, "azimuth": 4, "elevation": 2}}
# 3DI-Ft: the seven types of SpatialVQA, as conversations.
SPATIAL_FT = {"types": dict.fromkeys(SPATIAL_TYPES, 3)}
# The benchmark: fewer questions per image, so that more images are seen.
SPATIAL_VQA = {"types": dict.fromkeys(SPATIAL_TYPES, 1)}
