"""All estimators of plain pictures that a config names, this project's own pose estimator among them.

Here and not beside the others, since the pose estimator stands above the sources of scenes.
"""

from __future__ import annotations

from spatialllm_jax.sources.pseudo_labels.config import PseudoLabelConfig
from spatialllm_jax.sources.pseudo_labels.interfaces import Estimators
from spatialllm_jax.sources.pseudo_labels.models import opening
from spatialllm_jax.sources.pseudo_labels.models.crops import BoxPoseEstimator


def open_estimators(config: PseudoLabelConfig) -> Estimators:
    """Loads the models; `models.orientation` may be a folder that `configs/pose.py` trained."""
    return opening.open_estimators(config, _own_pose)


def _own_pose(folder: str) -> BoxPoseEstimator:
    from spatialllm_jax.pose import estimator  # late: JAX, which pictures without a pose do not need

    return estimator.load(folder)
