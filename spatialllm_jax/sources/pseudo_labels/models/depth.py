"""Metric depth: Depth Pro (Bochkovskii et al. 2024), which sees the focal length too, and Depth Anything V2."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from spatialllm_jax.errors import UserError
from spatialllm_jax.sources.pseudo_labels.config import PseudoLabelConfig
from spatialllm_jax.sources.pseudo_labels.interfaces import DepthEstimator, DepthMap, Picture
from spatialllm_jax.sources.pseudo_labels.models import weights

_ADVICE = "apple/DepthPro-hf"
# Depth Pro's inverse depths end here: farther than 10 km and nearer than 0.1 mm are not told apart.
_INVERSE = (1e-4, 1e4)


def open_depth(config: PseudoLabelConfig, device: str) -> DepthEstimator:
    """The depth estimator that the settings name."""
    name = config.models.depth
    model = weights.open_model(name, "depth", {"depth_pro": "DepthProForDepthEstimation",
                                               "depth_anything": "DepthAnythingForDepthEstimation"}, _ADVICE, device)
    return DepthPro(model, name, device) if model.config.model_type == "depth_pro" else DepthAnything(
        model, name, device)


class DepthPro:
    """Inverse depth for a canonical camera, and the field of view that makes it metric."""

    def __init__(self, model: Any, name: str, device: str) -> None:
        self._model, self._device = model, device
        self._pixels = weights.read_normalisation(name, "depth")

    def depth(self, image: Picture) -> DepthMap:
        """See `interfaces.DepthEstimator`; the focal length is told where the model has the head for it."""
        torch, side = weights.torch_module(), self._pixels.size
        resize = torch.nn.functional.interpolate
        height, width = image.shape[:2]
        with torch.inference_mode():
            pixels = resize(self._pixels.tensor(image, self._device), (side, side), mode="bilinear")
            out = self._model(pixels)
            inverse = out.predicted_depth.float()[:, None]
            focal = None
            if out.field_of_view is not None:
                angle = float(out.field_of_view.reshape(-1)[0])
                focal = float(0.5 * width / np.tan(0.5 * np.radians(angle))) if 1.0 < angle < 179.0 else None
            if focal is not None:
                inverse = inverse * (width / focal)
            inverse = resize(inverse, (height, width), mode="bilinear")[0, 0].clamp(*_INVERSE)
            return DepthMap((1.0 / inverse).cpu().numpy(), focal)


class DepthAnything:
    """Depth Anything V2 (Yang et al. 2024) with a metric head."""

    def __init__(self, model: Any, name: str, device: str) -> None:
        if model.config.depth_estimation_type != "metric":
            raise UserError(f"pseudo_labels.models.depth={name!r} estimates relative depth, which has no metres; fetch "
                            "depth-anything/Depth-Anything-V2-Metric-Outdoor-Large-hf or -Indoor-Large-hf")
        from transformers import AutoImageProcessor

        self._model, self._device = model, device
        self._processor = weights.open_processor(AutoImageProcessor, name, "depth")

    def depth(self, image: Picture) -> DepthMap:
        """See `interfaces.DepthEstimator`; tells no focal length."""
        torch = weights.torch_module()
        with torch.inference_mode():
            inputs = self._processor(images=Image.fromarray(image), return_tensors="pt").to(self._device)
            out = self._model(**inputs).predicted_depth.float()[:, None]
            out = torch.nn.functional.interpolate(out, image.shape[:2], mode="bicubic")
        return DepthMap(out[0, 0].cpu().numpy())
