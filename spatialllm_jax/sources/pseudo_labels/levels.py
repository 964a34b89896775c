"""Noise levels at which the engine's error is measured, and the measurement itself on rendered scenes."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from collections.abc import Mapping

import numpy as np
from PIL import Image

from spatialllm_jax.sources.pseudo_labels.config import Judging, PseudoLabelConfig
from spatialllm_jax.sources.pseudo_labels.error import Tally, compare, without_judging
from spatialllm_jax.sources.pseudo_labels.interfaces import Estimators
from spatialllm_jax.sources.pseudo_labels.pipeline import label
from spatialllm_jax.sources.pseudo_labels.truth import Noise, Truth
from spatialllm_jax.sources.rendered.catalogue import CATEGORIES
from spatialllm_jax.sources.rendered.config import RenderConfig
from spatialllm_jax.sources.rendered.source import render

LEVELS: dict[str, Noise] = {
    "true": Noise(),
    "depth scale 5%": Noise(depth_scale=0.05),
    "depth scale 20%": Noise(depth_scale=0.2),
    "depth pixels 1%": Noise(depth_pixel=0.01),
    "depth pixels 5%": Noise(depth_pixel=0.05),
    "mask -2 px": Noise(mask=-2),
    "mask +1 px": Noise(mask=1),
    "mask +3 px": Noise(mask=3),
    "orientation 5": Noise(orientation=5.0),
    "orientation 15": Noise(orientation=15.0),
    "orientation 30": Noise(orientation=30.0),
    "gravity by ground": Noise(ground=True),
    "gravity 3": Noise(gravity=3.0),
    "gravity 10": Noise(gravity=10.0),
    "all, mild": Noise(0.05, 0.01, 1, 5.0, 3.0),
    "all, strong": Noise(0.2, 0.03, 2, 15.0, 10.0),
}
RANDOM = "random models"
# Judged: what is uncertain widens the margins, the noise being known (two standard deviations of it). Default: the
# same with the default settings, whatever the noise is. Unjudged: margins alone, estimates taken at their word.
MODES = ("judged", "default", "unjudged")
_SLACK = 1.1    # of the largest sizes of the catalogue: what a table of sizes knows is not exact


def largest_sizes() -> dict[str, tuple[float, float, float]]:
    """Largest (length, height, width) of the renderer's categories, in metres, with some slack."""
    return {c.name: (c.length[1] * _SLACK, c.height[1] * _SLACK, c.width[1] * _SLACK) for c in CATEGORIES.values()}


def judging_of(noise: Noise) -> Judging:
    """What estimators with this noise would be said to be off by."""
    return Judging(depth_error=2 * (noise.depth_scale + noise.depth_pixel), mask_error=1.0 + abs(noise.mask),
                   orientation_error=2 * noise.orientation, gravity_error=noise.gravity)


@dataclasses.dataclass(frozen=True)
class Measure:
    """Measures one rendered scene after another; picklable, for `engines`.

    Attributes:
        render: of the scenes.
        seed: stream of scenes, and of the noise.
        config: of the labelling; its judging is replaced by the level's, but in mode "default".
        levels: names in LEVELS.
    """

    render: RenderConfig
    seed: int
    config: PseudoLabelConfig
    levels: tuple[str, ...]

    def __call__(self, index: int) -> dict[tuple[str, str], Tally]:
        """Tallies by (level, mode) of scene `index`."""
        rendered = render(self.render, self.seed, index)
        picture = _pixels(rendered.scene.image.read())
        found: dict[tuple[str, str], Tally] = {}
        for name in self.levels:
            noise = LEVELS[name]
            estimators = Truth(rendered, noise, self.seed * 1_000_003 + index).estimators()
            judged, default = (label(picture, rendered.scene.image, estimators,
                                     dataclasses.replace(self.config, judging=judging)).scene
                               for judging in (judging_of(noise), self.config.judging))
            for mode, scene in zip(MODES, (judged, default, without_judging(judged) if judged else None), strict=True):
                compare(scene, rendered.scene, found.setdefault((name, mode), Tally()))
        return found


def measure_models(measure: Measure, index: int, estimators: Estimators) -> dict[tuple[str, str], Tally]:
    """The same of any estimators, with the config's own judging."""
    rendered = render(measure.render, measure.seed, index)
    scene = label(_pixels(rendered.scene.image.read()), rendered.scene.image, estimators, measure.config).scene
    found = {(RANDOM, mode): Tally() for mode in ("default", "unjudged")}
    compare(scene, rendered.scene, found[RANDOM, "default"])
    compare(without_judging(scene) if scene else None, rendered.scene, found[RANDOM, "unjudged"])
    return found


def add(total: dict[tuple[str, str], Tally], more: Mapping[tuple[str, str], Tally]) -> None:
    """Adds tallies by key."""
    for key, tally in more.items():
        kept = total.setdefault(key, Tally())
        for field in dataclasses.fields(Tally):
            value = getattr(tally, field.name)
            if isinstance(value, Counter):
                getattr(kept, field.name).update(value)
            else:
                setattr(kept, field.name, getattr(kept, field.name) + value)


def _pixels(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))
