"""A folder of pictures -> a scene file, by any engine, whatever happens on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spatialllm_jax.engines import Engine
from spatialllm_jax.errors import UserError
from spatialllm_jax.scene.serialize import scene_to_json
from spatialllm_jax.scene.types import SceneImage
from spatialllm_jax.sources.pseudo_labels.config import PseudoLabelConfig
from spatialllm_jax.sources.pseudo_labels.interfaces import Estimators
from spatialllm_jax.sources.pseudo_labels.journal import Journal, Outcome
from spatialllm_jax.sources.pseudo_labels.models.opening import open_estimators
from spatialllm_jax.sources.pseudo_labels.pictures import picture_names, read_picture
from spatialllm_jax.sources.pseudo_labels.pipeline import Watch, label, unwatched

LICENCE = "as the pictures' owners say; boxes estimated by this program with the models named in the settings"
# So many pictures in a row on which the models break are no bad pictures.
_BROKEN_IN_A_ROW = 20
Opener = Callable[[PseudoLabelConfig], Estimators]


@dataclasses.dataclass(frozen=True, eq=False)
class Labeller:
    """Labels one file after another; what is wrong with one is its outcome, not an exception."""

    images: Path
    config: PseudoLabelConfig
    estimators: Estimators
    watch: Watch = unwatched

    def __call__(self, name: str) -> Outcome:
        """The outcome of the picture `name` below the folder."""
        with self.watch("reading"):
            read = read_picture(self.images / name, self.config.max_side)
        if read.picture is None:
            return Outcome(name, reason=read.reason, detail=read.detail)
        try:
            made = label(read.picture, SceneImage(name), self.estimators, self.config, self.watch)
        except UserError:
            raise
        except Exception as error:  # a model may break on a picture in any way; the other million must go on
            return Outcome(name, reason=f"error: {type(error).__name__}", detail=str(error), changes=read.changes)
        encoded = read.encoded() if read.changes and made.scene is not None else None
        return Outcome(name, scene_to_json(made.scene) if made.scene is not None else "", made.reason,
                       left_out=dict(made.left_out), changes=read.changes, encoded=encoded)


def open_labeller(images: Path, config: PseudoLabelConfig, opener: Opener = open_estimators) -> Labeller:
    """Loads the models in the process that will use them."""
    return Labeller(images, config, opener(config))


def label_folder(images: Path, labels: Path, config: PseudoLabelConfig, engine: Engine, *,
                 opener: Opener = open_estimators, progress: bool = True) -> tuple[Path, Mapping[str, int]]:
    """Labels every picture below a folder that `labels` does not hold yet.

    Args:
        labels: folder of the outcomes (`journal`); a second call goes on where the first one was stopped.
        opener: loads the estimators, in each worker; picklable.

    Returns:
        The scene file, and what was left out by reason (pictures and objects).

    Raises:
        UserError: for a folder without pictures, missing models, labels of other settings, or models that break on
            one picture after the other; or labels that would lie among the pictures.
    """
    if not images.is_dir():
        raise UserError(f"{images} is no folder; name a folder of pictures with --input pseudo_labels:FOLDER")
    names, others = picture_names(images)
    if not names:
        raise UserError(f"{images} holds no picture ({others} other files); name a folder of pictures")
    if labels.resolve().is_relative_to(images.resolve()):
        raise UserError(f"the labels' folder {labels} lies among the pictures of {images}, where the next run would "
                        "label what this one keeps; name another folder with --labels")
    make = functools.partial(open_labeller, images, config, opener)
    broken = 0
    with contextlib.closing(Journal(labels, images, {"images": images.name, **_settings(config)})) as journal:
        todo = [name for name in names if name not in journal]
        if todo:
            with contextlib.closing(engine.map(make, todo)) as outcomes:
                for outcome in tqdm(outcomes, desc=f"labelling {images.name}", unit="image", total=len(names),
                                    initial=len(names) - len(todo), disable=not progress):
                    journal.add(outcome)
                    broken = broken + 1 if outcome.reason.startswith("error: ") else 0
                    if broken >= _BROKEN_IN_A_ROW:
                        raise UserError(f"the models broke on {broken} pictures in a row, last on {outcome.name} "
                                        f"({outcome.reason.removeprefix('error: ')}: {outcome.detail}); mend that, "
                                        f"remove {labels} and run again")
        scenes, ignored = journal.finish(set(names))
    if others:
        ignored["file: no picture by its name"] += others
    return scenes, ignored


def _settings(config: PseudoLabelConfig) -> dict[str, Any]:
    """What the outcomes depend on: not the device, whose choice is the machine's."""
    models = dataclasses.replace(config.models, device="")
    return dataclasses.asdict(dataclasses.replace(config, models=models, sizes=dict(config.sizes)))


def commonest(ignored: Mapping[str, int]) -> str:
    """The commonest reasons in words, for a sentence."""
    return ", ".join(f"{reason}: {count}" for reason, count in Counter(ignored).most_common(3)) or "no reason known"
