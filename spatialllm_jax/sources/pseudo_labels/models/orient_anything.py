"""Orient-Anything's weights (Wang et al. 2024): a DINOv2 backbone and one head of classes over three angles.

The format is that project's: a state dict with `dinov2.*` under the hub's names and `down_sampler.net1|net2.{0,1}`
(linear, batch norm). The class token gives 360 azimuths, 180 elevations from -90 on, 60, 180 or 360 rotations (their
middle is 0), and two logits of which the first says that the object has a front. Its angles are ImageNet3D's
(`scene.geometry.viewpoint`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from spatialllm_jax.errors import UserError
from spatialllm_jax.sources.pseudo_labels.config import PseudoLabelConfig
from spatialllm_jax.sources.pseudo_labels.interfaces import Orientation
from spatialllm_jax.sources.pseudo_labels.models import weights

_FIXED = 360 + 180 + 2
_ROTATIONS = (60, 180, 360)
_PIXELS = weights.Normalisation(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Crops are scaled to this side and their middle is taken, as DINOv2's processor does.
_SHORTEST = 256
_BATCH = 16
_ADVICE = ("fetch croplargeEX2/dino_weight.pt of Viglong/Orient-Anything and config.json of facebook/dinov2-large "
           "into one folder and name it")


class Head(torch.nn.Module):
    """Linear, batch norm, ReLU, linear, batch norm; [B, D] -> [B, C]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.net1 = torch.nn.Sequential(torch.nn.Linear(width, classes), torch.nn.BatchNorm1d(classes), torch.nn.ReLU())
        self.net2 = torch.nn.Sequential(torch.nn.Linear(classes, classes), torch.nn.BatchNorm1d(classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.net2(self.net1(x))
        return result


class OrientAnything:
    """A `PoseEstimator`."""

    def __init__(self, config: PseudoLabelConfig, device: str) -> None:
        from transformers import AutoConfig, Dinov2Model

        name = config.models.orientation
        where, folder = f"pseudo_labels.models.orientation={name!r}", Path(name)
        files = sorted(p for p in folder.glob("*") if p.suffix in (".pt", ".pth", ".bin", ".safetensors"))
        if not files or not (folder / "config.json").is_file():
            raise UserError(f"{where} is no folder with weights and config.json; {_ADVICE}")
        state = _state(files[0], where)
        backbone = {k.removeprefix("dinov2."): v for k, v in state.items() if k.startswith("dinov2.")}
        head = {k.removeprefix("down_sampler."): v for k, v in state.items() if k.startswith("down_sampler.")}
        classes = len(head["net2.0.bias"]) if "net2.0.bias" in head else 0
        if not backbone or classes - _FIXED not in _ROTATIONS:
            raise UserError(f"{where}: {files[0].name} is not in Orient-Anything's format; {_ADVICE}")
        try:
            shape = AutoConfig.from_pretrained(folder, local_files_only=True)
            # Through from_pretrained, which knows the names that the hub's files have in this version.
            opened: Any = Dinov2Model.from_pretrained(None, config=shape, state_dict=backbone, output_loading_info=True)
            self._head = Head(shape.hidden_size, classes)
            self._head.load_state_dict(head)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UserError(f"{where}: weights and config.json do not fit ({str(error).splitlines()[0]}); {_ADVICE}"
                            ) from error
        if missing := sorted(opened[1]["missing_keys"]):
            raise UserError(f"{where}: {files[0].name} lacks {missing[0]} of the backbone; {_ADVICE}")
        self._backbone = opened[0].to(device).eval()
        self._head.to(device).eval()
        self._device = device

    def viewpoints(self, crops: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[Orientation | None]:
        """See `interfaces.PoseEstimator`."""
        found: list[Orientation | None] = []
        for k in range(0, len(crops), _BATCH):
            pixels = torch.cat([self._input(crop) for crop in crops[k: k + _BATCH]])
            with torch.inference_mode():
                logits = self._head(self._backbone(pixels).last_hidden_state[:, 0])
            found.extend(angles_of(row) for row in logits.float().cpu().numpy())
        return found

    def _input(self, crop: UInt8[np.ndarray, "h w 3"]) -> torch.Tensor:
        scale = _SHORTEST / min(crop.shape[:2])
        size = max(round(crop.shape[1] * scale), _SHORTEST), max(round(crop.shape[0] * scale), _SHORTEST)
        picture = Image.fromarray(crop).resize(size, Image.Resampling.BICUBIC)
        left, top = ((side - _PIXELS.size) // 2 for side in picture.size)
        middle = picture.crop((left, top, left + _PIXELS.size, top + _PIXELS.size))
        result: torch.Tensor = _PIXELS.tensor(np.asarray(middle), self._device)
        return result


def angles_of(logits: np.ndarray) -> Orientation:
    """The viewpoint that one row of class scores says."""
    turns = len(logits) - _FIXED
    azimuth, elevation, theta = (int(part.argmax()) for part in np.split(logits[:-2], [360, 540]))
    front = logits[-2:] - logits[-2:].max()
    confidence = np.exp(front[0]) / np.exp(front).sum()
    return Orientation(float(azimuth), float(elevation - 90), float(theta - turns // 2), float(confidence))


def _state(path: Path, where: str) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # Only tensors are read: a pickle that holds code is refused.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler met
        raise UserError(f"{where}: {path.name} cannot be read ({type(error).__name__}); {_ADVICE}") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{where}: {path.name} holds no plain weights; {_ADVICE}")
    return state
