"""Masks for boxes: SAM (Kirillov et al. 2023) and SAM 2 (Ravi et al. 2024)."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from spatialllm_jax.sources.pseudo_labels.config import PseudoLabelConfig
from spatialllm_jax.sources.pseudo_labels.interfaces import Masks, Picture
from spatialllm_jax.sources.pseudo_labels.models import weights

_BOXES = 32     # per call of the mask decoder


class SegmentAnything:
    """SAM keeps the picture's aspect and pads below and to the right; SAM 2 stretches it to a square."""

    def __init__(self, config: PseudoLabelConfig, device: str) -> None:
        name = config.models.segmenter
        self._model = weights.open_model(name, "segmenter", {"sam": "SamModel", "sam2": "Sam2Model",
                                                             "sam2_video": "Sam2Model"},
                                         "facebook/sam2.1-hiera-large", device)
        self._pixels = weights.read_normalisation(name, "segmenter")
        self._device, self._padded = device, type(self._model).__name__ == "SamModel"

    def segment(self, image: Picture, boxes: Float[np.ndarray, "N 4"]) -> Masks:
        """See `interfaces.Segmenter`."""
        torch, side = weights.torch_module(), self._pixels.size
        resize = torch.nn.functional.interpolate
        height, width = image.shape[:2]
        scaled = ((round(height * side / max(height, width)), round(width * side / max(height, width)))
                  if self._padded else (side, side))
        scale = torch.tensor([scaled[1] / width, scaled[0] / height] * 2, device=self._device)
        masks, scores = [], []
        with torch.inference_mode():
            pixels = resize(self._pixels.tensor(image, self._device), scaled, mode="bilinear", antialias=True)
            pixels = torch.nn.functional.pad(pixels, (0, side - scaled[1], 0, side - scaled[0]))
            features = self._model.get_image_embeddings(pixels)
            for k in range(0, len(boxes), _BOXES):
                prompts = torch.tensor(boxes[k: k + _BOXES], device=self._device).float() * scale
                out = self._model(image_embeddings=features, input_boxes=prompts[None], multimask_output=False)
                logits = out.pred_masks[0, :, :1].float()
                if self._padded:
                    logits = resize(logits, (side, side), mode="bilinear")[..., : scaled[0], : scaled[1]]
                masks.append(self._binary(resize(logits, (height, width), mode="bilinear")))
                scores.append(out.iou_scores[0, :, 0].float().cpu().numpy())
        return Masks(np.concatenate(masks), np.clip(np.concatenate(scores).astype(float), 0, 1))

    @staticmethod
    def _binary(logits: Any) -> np.ndarray:
        return (logits[:, 0] > 0).cpu().numpy()
