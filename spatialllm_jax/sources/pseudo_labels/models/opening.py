"""All estimators that a config names, loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from spatialllm_jax.errors import UserError
from spatialllm_jax.sources.pseudo_labels.camera import DepthCalibrator
from spatialllm_jax.sources.pseudo_labels.config import PseudoLabelConfig
from spatialllm_jax.sources.pseudo_labels.interfaces import Estimators, OrientationEstimator
from spatialllm_jax.sources.pseudo_labels.models import weights
from spatialllm_jax.sources.pseudo_labels.models.crops import BoxOrientation, BoxPoseEstimator, CroppedOrientation


def open_estimators(config: PseudoLabelConfig, own_pose: Callable[[str], BoxPoseEstimator] | None = None
                    ) -> Estimators:
    """Loads the models.

    Args:
        own_pose: opens a model folder of this project as a pose estimator; without it, orientation is
            Orient-Anything's alone.

    Raises:
        UserError: for a missing extra, model or vocabulary, before any picture is read.
    """
    weights.torch_module()
    weights.quiet()
    from spatialllm_jax.sources.pseudo_labels.models.depth import open_depth
    from spatialllm_jax.sources.pseudo_labels.models.detection import ClipTagger, GroundingDino, VocabularyTagger
    from spatialllm_jax.sources.pseudo_labels.models.segmentation import SegmentAnything

    if not config.vocabulary:
        raise UserError("pseudo_labels.vocabulary is empty; give the names to look for "
                        "(configs/data/3di_pb_oi1m.py has some)")
    device = weights.device_of(config.models.device)
    orientation: OrientationEstimator | None = None
    name = config.models.orientation
    if name and own_pose is not None and (Path(name) / "params").is_dir():
        orientation = BoxOrientation(own_pose(name), config.fronts)
    elif name:
        from spatialllm_jax.sources.pseudo_labels.models.orient_anything import OrientAnything

        orientation = CroppedOrientation(OrientAnything(config, device), fronts=config.fronts)
    tagger = ClipTagger(config, device) if config.models.tagger else VocabularyTagger(config.vocabulary)
    return Estimators(tagger, GroundingDino(config, device), SegmentAnything(config, device),
                      open_depth(config, device), DepthCalibrator(config), orientation)
