"""A row of the roadmap: its stages in order, each starting from the weights of the last."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
from absl import logging

from spatialllm_jax.data import lengths, pipeline, samples
from spatialllm_jax.data import tokenizer as tokenizers
from spatialllm_jax.data.llava_source import MalformedSample
from spatialllm_jax.data.patch_words import ATTRIBUTES, vocabulary
from spatialllm_jax.data.pipeline import PatchMap
from spatialllm_jax.data.samples import SourceConfig, TextConfig
from spatialllm_jax.errors import UserError
from spatialllm_jax.models import store
from spatialllm_jax.models.config import ModelConfig
from spatialllm_jax.models.linear import merge_lora
from spatialllm_jax.models.presets import preset
from spatialllm_jax.parallel import hosts
from spatialllm_jax.parallel.mesh import data_ways, make_mesh, share_of_rows
from spatialllm_jax.parallel.rules import param_shardings, state_shardings
from spatialllm_jax.training import frozen as frozen_lib
from spatialllm_jax.training import initial, optimizer
from spatialllm_jax.training.config import StageConfig, stage_config
from spatialllm_jax.training.cost import stage_flops
from spatialllm_jax.training.features import stored_features
from spatialllm_jax.training.loop import Feed, Watch, run_stage
from spatialllm_jax.training.metrics import read_lines
from spatialllm_jax.training.partition import Flat, flatten, unflatten
from spatialllm_jax.training.program import Parts, first_state, jitted_step, model_config, stage_parts

MODEL, CHAT = "model", "chat.json"
OpenWeights = Callable[[str, str], store.Weights]


def train_row(config: Mapping[str, Any], workdir: str | Path, *, open_weights: OpenWeights = store.open_weights,
              watch: Watch | None = None) -> dict[str, Any]:
    """Trains all stages of a row that are not done yet; returns what `--json` prints.

    Args:
        config: as a file in `configs/` gives it, resolved to plain values.
        open_weights: (folder, path prefix) -> what a folder of `config["weights"]` holds; `convert.folders`'s reads
            transformers folders as well.
        watch: progress and trackers.
        workdir: `config.json`, `tokenizer.json`, one folder per stage (checkpoints, metrics, `model/`), and
            `model` of the last stage.
    """
    workdir = Path(workdir)
    watch = dataclasses.replace(watch or Watch(), run=workdir.name)
    watch.trackers.check()
    stages = [stage_config(name, tree) for name, tree in config["stages"].items()]
    if not stages:
        raise UserError("config.stages is empty; name at least one stage")
    mesh = make_mesh(**config.get("mesh", {}))
    if hosts.is_first():
        prepare_tokenizer(config.get("tokenizer", ""), stages, workdir)
    hosts.wait("tokenizer")
    tokenizer = tokenizers.load(workdir)
    model = model_config(config, tokenizer.vocab_size)
    folders = {prefix: folder for prefix, folder in config.get("weights", {}).items() if folder}
    earlier: list[store.Weights] = []
    summary: dict[str, Any] = {"row": config["row"], "workdir": str(workdir), "stages": {}}
    known = [_parts(stage, config, model, tokenizer).abstract for stage in stages]
    initial.check_prefixes(folders, known)
    weights = {prefix: store.merged(open_weights(folder, prefix)) for prefix, folder in folders.items()}
    initial.check_configs(weights, model)
    for stage, abstract in zip(stages, known, strict=True):
        frozen_lib.held(abstract, stage)
    store_config(config, workdir)  # only now: a config with a mistake must not occupy the folder
    with jax.set_mesh(mesh):
        for index, stage in enumerate(stages):
            folder = workdir / stage.name
            if (folder / MODEL / CHAT).exists():  # the last file written
                logging.info("stage %s is done", stage.name)
            else:
                _train_stage(stage, config, model, tokenizer, mesh, earlier, weights, folder,
                             jax.random.fold_in(jax.random.key(config["seed"]), index), watch)
            # Read again by whoever needs them: between stages nothing lies on the devices.
            earlier.insert(0, store.merged(store.open_weights(folder / MODEL)))
            lines = read_lines(folder / "metrics.jsonl")
            summary["stages"][stage.name] = lines[-1] if lines else {}
    summary["model"] = str(workdir / stages[-1].name / MODEL)
    return summary


def prepare_features(config: Mapping[str, Any], *, open_weights: OpenWeights = store.open_weights,
                     show_progress: bool = True) -> None:
    """Computes the frozen features that a row's stages will read, so that several rows can start at once.

    For rows whose encoders come from `config["weights"]` and train in no stage.
    """
    stages = [stage_config(name, tree) for name, tree in config["stages"].items()]
    model = preset(config["model"]["preset"]).replace(dtype=config["model"]["dtype"])
    found: Flat = {}
    for encoder in model.vision:
        prefix = f"vision/{encoder.name}"
        folder = config["weights"].get(prefix)
        if not folder:
            raise UserError(f"config.weights has no folder for {prefix}; features of random weights are not kept")
        found.update(open_weights(folder, prefix).load(prefix))
    for stage in stages:
        if stage.stored_features:
            stored_features(model, found, [(source.path, source.split) for source in stage.sources],
                            image_size=stage.rows.image_size, resize=stage.rows.resize,
                            folder=config["features"], show_progress=show_progress)


def prepare_tokenizer(path: str, stages: list[StageConfig], workdir: Path) -> tokenizers.Tokenizer:
    """The tokenizer at `path`, or one trained on the texts of all stages; kept in the run's folder."""
    if (workdir / tokenizers.FILE).exists() and (workdir / "config.json").exists():
        return tokenizers.load(workdir)
    if path:
        tokenizer = tokenizers.load(path)
    else:
        tokenizer = train_tokenizer([source for stage in stages for source in stage.sources])
    tokenizer.save(workdir)
    return tokenizer


def stage_tokenizer(stage: StageConfig, tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer of a stage's texts: its own, or the run's."""
    return tokenizers.load(stage.tokenizer) if stage.tokenizer else tokenizer


def train_tokenizer(sources: list[SourceConfig], limit: int = 2000) -> tokenizers.Tokenizer:
    """A tokenizer trained on the questions, answers and patch words of the first `limit` images of every dataset."""
    texts: list[str] = []
    different = {(source.path, source.split): source for source in sources}
    for _, source in sorted(different.items()):
        records = samples.open_source(source)
        for index in range(min(limit, len(records))):
            try:
                record = records[index]
            except MalformedSample:     # counted, and limited, when training reads it
                continue
            if record.scene:
                texts += vocabulary(record, ATTRIBUTES)
            for question in record.questions:
                for asked, answered in question.turns:
                    texts += ["\n" + asked, answered]
    return tokenizers.train(texts)


def _parts(stage: StageConfig, config: Mapping[str, Any], model: ModelConfig,
           tokenizer: tokenizers.Tokenizer) -> Parts:
    contrastive = stage.objective == "contrastive"
    return stage_parts(stage, config, model, stage_tokenizer(stage, tokenizer).vocab_size if contrastive else None)


def _train_stage(stage: StageConfig, config: Mapping[str, Any], model: ModelConfig,
                 tokenizer: tokenizers.Tokenizer, mesh: jax.sharding.Mesh, earlier: list[store.Weights],
                 weights: dict[str, store.Weights], folder: Path, key: jax.Array, watch: Watch) -> None:
    parts = _parts(stage, config, model, tokenizer)
    tokenizer = stage_tokenizer(stage, tokenizer)
    text = TextConfig(stage.template, stage.rows.longest, model.connector.num_tokens, stage.system)
    stage = _sized(stage, text, tokenizer, mesh, config["seed"])
    shardings = flatten(param_shardings(unflatten(parts.abstract), mesh))
    init_key, step_key = jax.random.split(key)

    def read(abstract: Flat, **options: Any) -> dict[str, jax.Array]:
        return initial.gather(abstract, parts.init, init_key, shardings, before=earlier, weights=weights, **options)

    params = read(frozen_lib.held(parts.abstract, stage), quantize=stage.quantize)
    stores = None
    if stage.stored_features and jax.process_count() > 1:
        raise UserError(f"stage {stage.name!r} stores features, which one process computes; set stored_features to "
                        "False, or train it with a single process")
    if stage.stored_features:
        assert isinstance(parts.config, ModelConfig)
        stores = stored_features(
            parts.config, params, [(source.path, source.split) for source in stage.sources],
            image_size=stage.rows.image_size, resize=stage.rows.resize, folder=config["features"],
            show_progress=watch.progress)
    tx = optimizer.build(stage.optimizer, stage.steps)
    state = first_state(stage, parts, params, tx, step_key)
    state = jax.device_put(state, state_shardings(state, params, mesh))
    step_fn = jitted_step(stage, parts.config, tx, jax.tree.map(lambda leaf: leaf.sharding, state), mesh)
    patches = PatchMap(model.connector.grid // model.connector.merge, stage.rows.resize) \
        if stage.needs_patch_words else None
    stream = pipeline.build(stage.sources, text, stage.rows, tokenizer, seed=config["seed"], features=stores,
                            patches=patches, share=share_of_rows(mesh))
    left = sum(leaf.size * leaf.dtype.itemsize for path, leaf in parts.abstract.items()
               if stage.keep_lora or "lora_" not in path)
    names = ["patches"] if stage.objective == "patch_words" else [*(source.name for source in stage.sources), "patches"]
    last, best = run_stage(stage, state, step_fn, iter(stream), mesh, folder, feed=Feed(names), watch=watch,
                           models=left * (2 if stage.keep_best else 1),
                           flops=stage_flops(stage, parts.config, state.trainable) if stage.objective == "next_token"
                           and isinstance(parts.config, ModelConfig) else None)
    save = functools.partial(_save, stage=stage, parts=parts, tokenizer=tokenizer, exact=functools.partial(
        read, parts.abstract), stored=[*earlier, *weights.values()])
    # The step owned (and was given) the arrays it ran on; only those it never saw are still `params`'.
    save(folder / MODEL, {**params, **last.frozen, **last.trainable})
    if best is not None:
        save(folder / f"{MODEL}-best", {**params, **last.frozen, **best.trainable})
    if hosts.is_first():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    hosts.wait(f"{stage.name} is saved")


def _save(folder: Path, params: dict[str, jax.Array], *, stage: StageConfig, parts: Parts,
          tokenizer: tokenizers.Tokenizer, exact: Callable[..., dict[str, jax.Array]],
          stored: list[store.Weights]) -> None:
    """Writes a model folder: low-rank updates merged unless they are to be kept, and nothing rounded.

    Args:
        exact: reads the paths `only` as the stage found them.
        stored: all that they are read from.
    """
    if rounded := frozen_lib.rounded(parts.abstract, stage):
        frozen_lib.write_exact(folder, parts.config, params, parts.abstract, initial.portions(rounded, stored),
                               lambda paths: exact(only=paths), stage.keep_lora)
    elif (stage.lora is None and stage.llm_lora is None) or stage.keep_lora:
        store.save_model(folder, parts.config, unflatten(params))
    else:
        store.save_model(folder, frozen_lib.adapted(parts.config, None, None),
                         merge_lora(unflatten(params), cast(ModelConfig, parts.config)))
    if hosts.is_first():
        tokenizer.save(folder)
        (folder / CHAT).write_text(json.dumps(
            {"template": stage.template, "system": stage.system, "image_size": stage.rows.image_size,
             "resize": stage.rows.resize}))


def _sized(stage: StageConfig, text: TextConfig, tokenizer: tokenizers.Tokenizer, mesh: jax.sharding.Mesh,
           seed: int) -> StageConfig:
    """The stage with the rows that `rows.samples` needs, and the steps of one pass if it has none."""
    ways = data_ways(mesh) * stage.accumulate
    if stage.rows.batch_size % ways:
        raise UserError(f"stages.{stage.name}.rows.batch_size={stage.rows.batch_size} does not divide over "
                        f"{data_ways(mesh)} parts of the mesh (data x fsdp) and {stage.accumulate} micro-batches; "
                        "choose a multiple of their product")
    if stage.steps and not stage.rows.samples:
        return stage
    plan = lengths.plan(stage.sources, text, stage.rows, tokenizer, seed=seed, ways=ways)
    logging.info("stage %s: %s", stage.name, plan)
    rows = dataclasses.replace(stage.rows, batch_size=plan.batch_size, samples=0)
    return dataclasses.replace(stage, rows=rows, steps=stage.steps or plan.steps or 0)


def store_config(config: Mapping[str, Any], workdir: Path) -> None:
    """Writes `config.json`. Raises UserError when the folder holds a run of another config."""
    workdir.mkdir(parents=True, exist_ok=True)
    file, text = workdir / "config.json", json.dumps(config, indent=1, sort_keys=False)
    if file.exists() and json.loads(file.read_text()) != json.loads(text):
        raise UserError(f"{workdir} holds a run of another config; choose another --workdir or delete it")
    hosts.wait("config is compared")
    if hosts.is_first():
        file.write_text(text)
