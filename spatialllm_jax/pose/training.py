"""Trains a pose head on stored features of objects with known angles, by the loop that every stage goes through."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float

from spatialllm_jax.data.pipeline import NAMES
from spatialllm_jax.errors import UserError
from spatialllm_jax.models import store
from spatialllm_jax.models.encoders import encoder_config, load_encoder, random_encoder, resized
from spatialllm_jax.models.linear import Params
from spatialllm_jax.models.pose import PoseConfig, PoseHead, apply_head, losses, parts
from spatialllm_jax.parallel.mesh import data_ways, make_mesh, replicated
from spatialllm_jax.pose import features, objects
from spatialllm_jax.pose.scoring import PoseScores, evaluate
from spatialllm_jax.training import optimizer
from spatialllm_jax.training.config import Pace, build
from spatialllm_jax.training.loop import Feed, Watch, run_stage
from spatialllm_jax.training.metrics import read_lines
from spatialllm_jax.training.optimizer import OptimizerConfig
from spatialllm_jax.training.partition import flatten, unflatten
from spatialllm_jax.training.run import store_config
from spatialllm_jax.training.step import init_state, make_step
from spatialllm_jax.whole_files import write_whole

STAGE, MODEL, SCORES = "head", "model", "scores.json"
OpenWeights = Callable[[str, str], store.Weights]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoseTraining(Pace):
    """How a head is trained.

    Attributes:
        batch_size: objects per update.
    """

    batch_size: int
    name: str = STAGE
    save_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.batch_size < 1:
            raise UserError(f"config.training: steps {self.steps} and batch_size {self.batch_size} must be at least 1")


@dataclasses.dataclass(frozen=True)
class PoseData:
    """Which objects a head learns from and is judged by.

    Attributes:
        path: folder in ImageNet3D's format.
        mirror: show each object flipped as well.
        jitter: move and scale training crops a little.
        fronts_only: leave out categories without a semantic front.
        train_limit, val_limit: most objects; 0 takes all.
    """

    path: str
    mirror: bool = True
    jitter: bool = True
    fronts_only: bool = False
    train_limit: int = 0
    val_limit: int = 0

    def __post_init__(self) -> None:
        if self.train_limit < 0 or self.val_limit < 0:
            raise UserError(f"config.data: train_limit {self.train_limit} and val_limit {self.val_limit} must not be "
                            "negative; 0 takes all")


@flax.struct.dataclass
class PoseBatch:
    """What a step sees: features [B, N, C] and angles [B, 3] in degrees."""

    features: Array
    angles: Array


@dataclasses.dataclass(frozen=True)
class PoseObjective:
    """Sums of the head's losses over a batch; see `training.objectives.Objective`."""

    config: PoseConfig

    def __call__(self, params: Any, batch: Any, rng: jax.Array):
        loss, right = losses(apply_head(self.config, params["head"], batch.features, rng), batch.angles, self.config)
        weight = jnp.full(loss.shape[1], float(loss.shape[0]))
        sums = {"loss": loss.sum(0), "weight": weight, "right": right.sum(0)}
        return loss.sum(), weight.sum(), sums


class ObjectStream:
    """Host batches of stored features without end; every object once per epoch, in an order of its own.

    A batch depends on the seed and its number alone, so that the state is that number.
    """

    def __init__(self, source: features.Stored, batch_size: int, seed: int):
        self._source, self._batch_size, self._seed, self._step = source, batch_size, seed, 0
        self._angles = np.array([item.angles for item in source.objects], np.float32)
        self._names = np.array([item.id for item in source.objects])
        self._order: tuple[int, np.ndarray] | None = None

    def __iter__(self) -> ObjectStream:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        start = self._step * self._batch_size
        rows = np.array([self._row(place) for place in range(start, start + self._batch_size)])
        self._step += 1
        return {"features": self._source.rows(rows), "angles": self._angles[rows], NAMES: self._names[rows]}

    def _row(self, place: int) -> int:
        epoch, index = divmod(place, len(self._names))
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(len(self._names))
        return int(self._order[1][index])

    def get_state(self) -> dict[str, Any]:
        """Where it stands."""
        return {"step": self._step}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes there."""
        self._step = int(state["step"])


def train(config: Mapping[str, Any], workdir: str | Path, *, open_weights: OpenWeights = store.open_weights,
          watch: Watch | None = None) -> tuple[dict[str, Any], PoseScores]:
    """Trains, or goes on with, the head of a config as `configs/pose.py` gives it; scores it on the val lists.

    Returns:
        What `--json` prints, and the scores.

    Args:
        workdir: gets `config.json`, `head/` (checkpoints, metrics, `model/`) and `scores.json`.
        open_weights: see `training.run.train_row`.

    Raises:
        UserError: the config, the data or the weights cannot be used.
        Interrupted: after SIGTERM or Ctrl-C, once everything is saved.
    """
    workdir, watch = Path(workdir), watch or Watch()
    watch = dataclasses.replace(watch, run=workdir.name)
    watch.trackers.check()
    if jax.process_count() > 1:
        raise UserError("a pose head is trained by a single process, on all of its devices; leave out --distributed")
    training = build(PoseTraining, {**config["training"], "optimizer": build(
        OptimizerConfig, config["training"]["optimizer"], "training.optimizer")}, "training")
    data = build(PoseData, config["data"], "data")
    if not config["weights"]:
        raise UserError("config.weights is empty; name a folder with a vision encoder: --config.weights=FOLDER")
    if config["seed"] < 0:
        raise UserError(f"config.seed {config['seed']} must not be negative")
    weights = open_weights(config["weights"], f"vision/{config['encoder']}" if config["encoder"] else "")
    encoder = resized(encoder_config(weights, config["encoder"]), config["image_size"])
    model = build(PoseConfig, {**config["model"], "encoder": encoder}, "model")
    mesh = make_mesh(**config.get("mesh", {}))
    if training.batch_size % data_ways(mesh):
        raise UserError(f"config.training.batch_size {training.batch_size} does not divide over {data_ways(mesh)} "
                        "parts of the mesh; choose a multiple")
    ignored: Counter[str] = Counter()
    train_objects = objects.for_training(
        objects.read(data.path, "train", ignored, fronts_only=data.fronts_only, limit=data.train_limit),
        mirror=data.mirror, jitter=data.jitter)
    val_objects = objects.read(data.path, "val", ignored, fronts_only=data.fronts_only, limit=data.val_limit)
    for reason, number in sorted(ignored.items()):
        logging.info("%s: left out %d x %s", data.path, number, reason)
    if config["random_weights"]:
        encoder_params = random_encoder(encoder, config["seed"])
    else:
        encoder_params = load_encoder(weights, config["encoder"], image_size=config["image_size"])[1]
    store_config(config, workdir)
    folder = workdir / STAGE
    train_place, val_place = _place(data, "train"), _place(data, "val")
    stored = features.stored(model, encoder_params, {train_place: train_objects, val_place: val_objects},
                             config["features"] or workdir / "features", show_progress=watch.progress)
    if not (folder / MODEL / store.CONFIG).exists():
        head = _train_head(model, training, stored[train_place], mesh, folder, config["seed"], watch)
        store.save_model(folder / MODEL, model, {"encoder": encoder_params, "head": head})
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    head = unflatten(store.load_params(folder / MODEL, "head"))["head"]
    scores = evaluate(model, head, stored[val_place], train_angles=np.array([item.angles for item in train_objects]))
    write_whole(workdir / SCORES, json.dumps(scores.as_dict(), indent=1))
    lines = read_lines(folder / "metrics.jsonl")
    return {"row": config["row"], "workdir": str(workdir), "model": str(folder / MODEL), "scores": scores.as_dict(),
            "stages": {STAGE: lines[-1] if lines else {}}, "ignored": dict(ignored)}, scores


def _place(data: PoseData, name: str) -> str:
    """Path of stored features below their key: one per data set and choice of objects."""
    limit = data.train_limit if name == "train" else data.val_limit
    shown = f"-{'mirror' * data.mirror}{'-jitter' * data.jitter}" if name == "train" else ""
    return f"{Path(data.path).name}-{name}{shown}{f'-{limit}' if limit else ''}"


def _train_head(model: PoseConfig, training: PoseTraining, source: features.Stored, mesh: jax.sharding.Mesh,
                folder: Path, seed: int, watch: Watch) -> Params:
    key_init, key_step = jax.random.split(jax.random.key(seed))
    empty: Float[Array, "1 N C"] = jnp.zeros((1, model.num_tokens, model.channels), jnp.float32)
    tx = optimizer.build(training.optimizer, training.steps)
    with jax.set_mesh(mesh):
        params = {"head": jax.jit(PoseHead(model).init)(key_init, empty)["params"]}
        state = jax.device_put(init_state(flatten(params), {}, tx, key_step), replicated(mesh))
        size = sum(leaf.nbytes for leaf in state.trainable.values())
        step = jax.jit(make_step(PoseObjective(model), tx, counts=_counts), donate_argnums=0,
                       out_shardings=replicated(mesh))
        last, best = run_stage(training, state, step, ObjectStream(source, training.batch_size, seed), mesh, folder,
                               feed=Feed(parts(model), PoseBatch, counted=False), watch=watch, models=size)
    return unflatten((best or last).trainable)["head"]


def _counts(batch: PoseBatch) -> dict[str, Array]:
    """Every object is a sample of one image; its tokens are the positions."""
    number, tokens = batch.features.shape[:2]
    return {"positions": jnp.int32(number * tokens), "samples": jnp.int32(number), "images": jnp.int32(number)}
