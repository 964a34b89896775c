"""Opening saved models: from a folder or the hub's cache; nothing is fetched behind the user's back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from spatialllm_jax.errors import UserError
from spatialllm_jax.sources.pseudo_labels.interfaces import Picture


def torch_module() -> Any:
    """torch; raises UserError when the extra is not installed."""
    try:
        import scipy  # noqa: F401
        import torch
    except ImportError as error:
        raise UserError(f"pseudo-labels need the package {error.name}, which is not installed; "
                        'run: pip install "spatialllm-jax[pseudo]"') from None
    return torch


def quiet() -> None:
    """No progress bars of transformers' own: there is one bar, that of the pictures."""
    import transformers

    transformers.utils.logging.disable_progress_bar()


def device_of(name: str) -> str:
    """The torch device that a setting names; the first accelerator for ""."""
    torch = torch_module()
    if not name:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"pseudo_labels.models.device={name!r} is no device here ({str(error).splitlines()[0]}); "
                        "leave it empty or name another") from None
    return name


def open_model(name: str, setting: str, kinds: dict[str, str], advice: str, device: str) -> Any:
    """A model in evaluation mode on a device.

    Args:
        name: folder, or a name in the hub's cache.
        setting: field of `ModelNames`, for the sentence.
        kinds: model type in `config.json` -> class in transformers.
        advice: name on the hub of a model that fits.

    Raises:
        UserError: when it is missing, or of another kind; the sentence says what to fetch.
    """
    torch_module()
    import transformers

    where = f"pseudo_labels.models.{setting}={name!r}"
    help_ = f"fetch one with `hf download {advice}` and name it, or a folder that holds it"
    try:
        config = transformers.AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{where} is neither a folder with a model nor in the hub's cache; {help_}") from error
    if config.model_type not in kinds:
        raise UserError(f"{where} is of type {config.model_type!r}, not {' or '.join(kinds)}; {help_}")
    try:
        model = getattr(transformers, kinds[config.model_type]).from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{where} has no weights that can be read ({str(error).splitlines()[0]}); {help_}") from error
    return model.to(device).eval()


def open_processor(kind: Any, name: str, setting: str) -> Any:
    """What turns pictures and words into a model's input, by class. Raises UserError when its files are missing."""
    try:
        return kind.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"pseudo_labels.models.{setting}={name!r} holds no processor that can be read "
                        f"({str(error).splitlines()[0]}); fetch all files of the model, not only its weights"
                        ) from error


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """How a model wants its pixels, as its `preprocessor_config.json` says.

    Read here, not by transformers' processors: those of SAM 2 and Depth Pro need torchvision, of which there is no
    build for every torch; what they do is a resize and two vectors.

    Attributes:
        size: side of the square input, or length of the longer side.
        mean, std: of pixels in [0, 1].
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def tensor(self, image: Picture, device: str) -> Any:
        """[1, 3, H, W] float32, normalised, not yet resized."""
        torch = torch_module()
        pixels = torch.tensor(image, device=device).float().permute(2, 0, 1)[None] / 255.0
        mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (pixels - mean) / std


def read_normalisation(name: str, setting: str) -> Normalisation:
    """The normalisation of a model. Raises UserError when its `preprocessor_config.json` is missing or odd."""
    from transformers.utils import cached_file

    try:
        path = cached_file(name, "preprocessor_config.json", local_files_only=True)
        data = json.loads(Path(str(path)).read_text())
        data = data.get("image_processor", data)
        size = data["size"]
        side = int(size.get("longest_edge") or size["height"]) if isinstance(size, dict) else int(size)
        return Normalisation(side, tuple(map(float, data["image_mean"])), tuple(map(float, data["image_std"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"pseudo_labels.models.{setting}={name!r} has no preprocessor_config.json that can be read "
                        f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); fetch all files of "
                        "the model, not only its weights") from error
