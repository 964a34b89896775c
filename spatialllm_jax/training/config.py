"""A run's config, from the readable `ml_collections.ConfigDict` of `configs/` to frozen dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from spatialllm_jax.data.pipeline import RowConfig
from spatialllm_jax.data.samples import SourceConfig
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import QUANTIZE, LoRAConfig
from spatialllm_jax.training.optimizer import OptimizerConfig

T = TypeVar("T")
OBJECTIVES = ("next_token", "patch_words", "contrastive")
FROZEN_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """What the training loop must know of a stage, whatever it trains.

    Attributes:
        name: folder of the stage within the run.
        steps: number of updates.
        optimizer: AdamW and its schedule.
        save_every, log_every: in steps.
        keep_last, keep_best: checkpoints that stay while the stage runs: the newest, and those of lowest loss.
        max_skipped: non-finite steps tolerated before the run stops.
    """

    name: str
    steps: int
    optimizer: OptimizerConfig
    save_every: int = 1000
    log_every: int = 10
    keep_last: int = 2
    keep_best: int = 0
    max_skipped: int = 10

    def __post_init__(self) -> None:
        if self.keep_last < 1 or self.keep_best < 0:
            raise UserError(f"stage {self.name!r}: keep_last must be at least 1 and keep_best not negative")
        if self.save_every < 1 or self.log_every < 1:
            raise UserError(f"stage {self.name!r}: save_every {self.save_every} and log_every {self.log_every} must be "
                            "at least 1")


@dataclasses.dataclass(frozen=True)
class StageConfig(Pace):
    """One stage of training. With `keep_best` the best checkpoint becomes `model-best/` beside the last one's `model/`.

    Attributes:
        objective: "next_token", "patch_words" or "contrastive".
        trainable: regular expression of the parameter paths that train.
        steps: also 0, for one pass of sources that have counts.
        rows: static shapes of a batch.
        sources: data mixture, by name.
        template, system: chat template of the text; see `data.chat`.
        tokenizer: folder of the tokenizer of this stage's texts where it is not the run's: CLIP's own, for a
            contrastive stage against CLIP's pretrained text tower.
        accumulate: micro-batches per update.
        lora, llm_lora: low-rank updates on the vision encoders, on the language model, while this stage runs; merged
            at its end. `trainable` must name them: ".*lora_", "connector|llm/.*lora_".
        keep_lora: leave the updates unmerged in the stage's model folder, so that they can be exported as an adapter;
            the next stage, and whatever else starts from the folder, merges them as it reads.
        quantize: how the frozen kernels of the language model's layers are held while the stage runs: "none", "int8"
            or "int4" (`models.quantize`). The model at its end starts from the exact ones again.
        frozen_dtype: "float32" or "bfloat16", of frozen kernels and the language model's embedding while the stage
            runs. What trains is float32 whatever this says, and the model at its end holds the exact values again.
        stored_features: compute the frozen encoders' features once instead of at every step.
        patch_weight: under "next_token", weight of a visual token's words next to a supervised token's 1.
        loss_chunk: positions per chunk of the cross-entropy.
        contrast_chunk: under "contrastive", rows of logits that a device holds at a time; 0 holds the whole [B, B]
            matrix on every device, for batches of a few hundred.
    """

    objective: str
    trainable: str
    rows: RowConfig
    sources: tuple[SourceConfig, ...]
    template: str = "llama3"
    system: str | None = None
    tokenizer: str = ""
    accumulate: int = 1
    lora: LoRAConfig | None = None
    llm_lora: LoRAConfig | None = None
    keep_lora: bool = False
    quantize: str = "none"
    frozen_dtype: str = "float32"
    stored_features: bool = False
    patch_weight: float = 0.0
    loss_chunk: int = 256
    contrast_chunk: int = 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UserError(f"stage {self.name!r}: unknown objective {self.objective!r}; "
                            f"choose one of {', '.join(OBJECTIVES)}")
        counted = bool(self.sources) and all(source.count is not None for source in self.sources)
        if self.steps < (0 if counted else 1) or not (self.rows.batch_size or self.rows.samples) or self.accumulate < 1:
            raise UserError(f"stage {self.name!r}: steps, batch_size and accumulate must be at least 1; only steps may "
                            "be 0, for one pass, where all sources have a count, and batch_size where rows.samples "
                            "is set")
        super().__post_init__()
        if self.rows.batch_size % self.accumulate:
            raise UserError(f"stage {self.name!r}: batch_size {self.rows.batch_size} does not divide into "
                            f"{self.accumulate} micro-batches")
        if self.objective == "contrastive" and self.accumulate > 1:
            raise UserError(f"stage {self.name!r} is contrastive: every row is compared with the whole batch, so "
                            "set accumulate to 1")
        self._check_adapters()
        if not self.sources:
            raise UserError(f"stage {self.name!r} has no data sources")
        if self.needs_patch_words and not any(source.patch_words for source in self.sources):
            raise UserError(f"stage {self.name!r} trains on patch words, but none of its sources names any: set "
                            "patch_words of a source")
        if self.stored_features and (llava := [source.path for source in self.sources if source.is_llava]):
            raise UserError(f"stage {self.name!r} stores features, which needs dataset folders, but {llava[0]} is a "
                            "LLaVA JSON file; set stored_features to False")
        if self.stored_features and self.trains_vision:
            raise UserError(f"stage {self.name!r} trains a vision encoder, whose features cannot be stored; "
                            "set stored_features to False")

    def _check_adapters(self) -> None:
        where = f"stage {self.name!r}"
        if self.quantize not in QUANTIZE:
            raise UserError(f"{where}: quantize {self.quantize!r} is unknown; choose one of {', '.join(QUANTIZE)}")
        if self.frozen_dtype not in FROZEN_DTYPES:
            raise UserError(f"{where}: frozen_dtype {self.frozen_dtype!r} is unknown; choose one of "
                            f"{', '.join(FROZEN_DTYPES)}")
        if self.objective == "contrastive" and (self.llm_lora is not None or self.quantize != "none"):
            raise UserError(f"{where} is contrastive and runs no language model; leave out llm_lora and quantize")
        if self.keep_lora and self.lora is None and self.llm_lora is None:
            raise UserError(f"{where} keeps LoRA updates but has none; set lora or llm_lora, or keep_lora to False")
        if self.contrast_chunk < 0 or (self.contrast_chunk and self.objective != "contrastive"):
            raise UserError(f"{where}: contrast_chunk {self.contrast_chunk} is for contrastive stages, and not "
                            "negative; leave it at 0")

    @property
    def needs_patch_words(self) -> bool:
        """Whether batches must carry `patch_targets`."""
        return self.objective == "patch_words" or self.patch_weight > 0

    @property
    def trains_vision(self) -> bool:
        """Whether a vision encoder may change."""
        return self.objective == "contrastive" or self.lora is not None or "vision" in self.trainable


def build(cls: type[T], tree: Mapping[str, Any], where: str) -> T:
    """An instance of dataclass `cls` from a mapping. Raises UserError that names an unknown or missing key."""
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in tree:
        if key not in names:
            raise UserError(f"config.{where} has no field {key!r}; it has {', '.join(sorted(names))}")
    try:
        return cls(**tree)
    except TypeError as error:
        raise UserError(f"config.{where}: {error}") from None


def stage_config(name: str, tree: Mapping[str, Any]) -> StageConfig:
    """The stage called `name` of a run's `config.stages`."""
    where = f"stages.{name}"
    fields = dict(tree)
    sources = tuple(
        build(SourceConfig, {"name": key, **value}, f"{where}.sources.{key}")
        for key, value in fields.pop("sources", {}).items() if value.get("weight", 1.0) > 0)
    lora = {key: fields.pop(key, None) for key in ("lora", "llm_lora")}
    return build(StageConfig, {
        **fields, "name": name, "sources": sources,
        "rows": build(RowConfig, fields.get("rows", {}), f"{where}.rows"),
        "optimizer": build(OptimizerConfig, fields.get("optimizer", {}), f"{where}.optimizer"),
        **{key: build(LoRAConfig, tree, f"{where}.{key}") if tree else None for key, tree in lora.items()}}, where)
