"""Tags and boxes: a fixed vocabulary, CLIP's choice from it, Grounding DINO."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from spatialllm_jax.sources.pseudo_labels.config import PseudoLabelConfig
from spatialllm_jax.sources.pseudo_labels.interfaces import Detections, Picture
from spatialllm_jax.sources.pseudo_labels.models import weights


@dataclasses.dataclass(frozen=True)
class VocabularyTagger:
    """Everything may be in every picture: the detector decides."""

    vocabulary: tuple[str, ...]

    def tags(self, image: Picture) -> tuple[str, ...]:
        """The whole vocabulary."""
        return self.vocabulary


class ClipTagger:
    """The words of the vocabulary that CLIP finds likeliest."""

    def __init__(self, config: PseudoLabelConfig, device: str) -> None:
        name = config.models.tagger
        self._model = weights.open_model(name, "tagger", {"clip": "CLIPModel"}, "openai/clip-vit-large-patch14", device)
        from transformers import AutoImageProcessor, AutoTokenizer

        self._images = weights.open_processor(AutoImageProcessor, name, "tagger")
        tokenizer = weights.open_processor(AutoTokenizer, name, "tagger")
        self._vocabulary, self._most, self._device = config.vocabulary, config.most_tags, device
        torch = weights.torch_module()
        with torch.inference_mode():
            texts = tokenizer([f"a photo of a {word}" for word in self._vocabulary], padding=True, truncation=True,
                              return_tensors="pt").to(device)
            self._texts = _unit(_features(self._model.get_text_features(**texts)))

    def tags(self, image: Picture) -> tuple[str, ...]:
        """The likeliest words, likeliest first."""
        torch = weights.torch_module()
        with torch.inference_mode():
            pixels = self._images(images=Image.fromarray(image), return_tensors="pt").to(self._device)
            scores = (_unit(_features(self._model.get_image_features(**pixels))) @ self._texts.T)[0].cpu().numpy()
        return tuple(self._vocabulary[k] for k in np.argsort(-scores, kind="stable")[: self._most])


def _features(output: Any) -> Any:
    """transformers 4 returns the features, transformers 5 an output that holds them."""
    return output.pooler_output if hasattr(output, "pooler_output") else output


def _unit(features: Any) -> Any:
    return features / features.norm(dim=-1, keepdim=True).clamp_min(1e-9)


class GroundingDino:
    """Grounding DINO (Liu et al. 2023): boxes for phrases."""

    def __init__(self, config: PseudoLabelConfig, device: str) -> None:
        name = config.models.detector
        self._model = weights.open_model(
            name, "detector", {"grounding-dino": "GroundingDinoForObjectDetection",
                               "mm-grounding-dino": "MMGroundingDinoForObjectDetection"},
            "IDEA-Research/grounding-dino-base", device)
        from transformers import AutoProcessor

        self._processor = weights.open_processor(AutoProcessor, name, "detector")
        self._config, self._device = config, device

    def detect(self, image: Picture, tags: Sequence[str]) -> Detections:
        """Boxes of all tags; they are asked for in groups, as the detector's text has a length."""
        step = self._config.vocabulary_chunk
        parts = [self._some(image, list(tags[k: k + step])) for k in range(0, len(tags), step)]
        return Detections(np.concatenate([part.boxes for part in parts]), np.concatenate([p.scores for p in parts]),
                          tuple(label for part in parts for label in part.labels))

    def _some(self, image: Picture, tags: list[str]) -> Detections:
        torch, filters = weights.torch_module(), self._config.filters
        text = "".join(f"{tag.lower()}. " for tag in tags).strip()
        with torch.inference_mode():
            inputs = self._processor(images=Image.fromarray(image), text=text, return_tensors="pt").to(self._device)
            outputs = self._model(**inputs)
        found = self._processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], threshold=filters.box_threshold, text_threshold=filters.text_threshold,
            target_sizes=[image.shape[:2]])[0]
        boxes = found["boxes"].float().cpu().numpy().reshape(-1, 4)
        height, width = image.shape[:2]
        boxes = np.clip(boxes, 0, [width, height, width, height])
        labels = [nearest_tag(phrase, tags) for phrase in found["text_labels"]]
        wide = (boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)
        keep = [k for k, label in enumerate(labels) if label is not None and wide[k]]
        return Detections(boxes[keep].astype(float), found["scores"].float().cpu().numpy()[keep].astype(float),
                          tuple(str(labels[k]) for k in keep))


def nearest_tag(phrase: str, tags: Sequence[str]) -> str | None:
    """The tag that a phrase of the detector stands for: it says the words that passed its threshold, so some may be
    missing or belong to two tags. The tag that shares most words with it, the shorter one of two; None for no word.
    """
    said = _words(phrase)
    shared = [(len(said & _words(tag)), -len(_words(tag)), -k) for k, tag in enumerate(tags)]
    best = max(shared, default=(0, 0, 0))
    return tags[-best[2]] if best[0] else None


@functools.lru_cache(maxsize=4096)
def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))
