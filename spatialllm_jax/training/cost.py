"""What a row costs, from its config alone: parameters, samples, operations, hours on a machine one does not have."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from spatialllm_jax.models.config import ModelConfig
from spatialllm_jax.models.flops import StepFlops, step_flops
from spatialllm_jax.models.presets import preset
from spatialllm_jax.models.spatialllm import abstract_params
from spatialllm_jax.training.config import StageConfig, stage_config
from spatialllm_jax.training.frozen import adapted
from spatialllm_jax.training.partition import Flat, flatten, split

# Positions of text in a sample and of those with a loss, where nothing was measured: `python -m launch.validate_data`
# measures them. A caption of CC558K has about 25 tokens; a conversation of Mix665K about 250, half of them answers.
TEXT = {"plain": (30, 25), "dialogue": (250, 120), "branches": (250, 120)}


@dataclasses.dataclass(frozen=True)
class StageCost:
    """What one stage costs.

    Attributes:
        stage: its name.
        samples: seen in all.
        steps: updates.
        trainable, parameters: numbers of parameters that train, and of all.
        flops: useful operations (`models.flops`).
        hours: on the assumed machine.
    """

    stage: str
    samples: int
    steps: int
    trainable: int
    parameters: int
    flops: float
    hours: float


def row_cost(config: Mapping[str, Any], *, devices: int, peak: float, mfu: float) -> list[StageCost]:
    """The cost of every next-token stage of a row; contrastive stages have no count and are left out.

    Args:
        config: of a row, as `configs/roadmap.py` gives it.
        devices: how many.
        peak: FLOP/s of one, dense bfloat16.
        mfu: share of the peak that useful operations reach.

    Raises:
        UserError: for a config that is not one of a row.
    """
    model = preset(config["model"]["preset"])
    found = []
    for name, tree in config["stages"].items():
        stage = stage_config(name, tree)
        if stage.objective != "next_token":
            continue
        whole = adapted(model, stage.lora, stage.llm_lora)
        parameters = flatten(abstract_params(whole))
        trainable, _ = split(parameters, stage.trainable)
        flops = _sample_flops(stage, whole, trainable)
        per_step = stage.rows.batch_size or stage.rows.samples
        samples = stage.steps * per_step or sum(source.count or 0 for source in stage.sources)
        hours = samples * flops / (devices * peak * mfu) / 3600
        found.append(StageCost(name, samples, math.ceil(samples / per_step), _count(trainable), _count(parameters),
                               samples * flops, hours))
    return found


def stage_flops(stage: StageConfig, model: ModelConfig, trainable: Flat) -> StepFlops:
    """Operations of a next-token step of a stage, by what it trains."""
    def trains(top: str) -> bool:
        return any(path.startswith(top) for path in trainable)

    return step_flops(model, trains_llm=any(path.startswith("llm/") and "lora_" not in path for path in trainable),
                      adapts_llm=stage.llm_lora is not None, trains_connector=trains("connector/"),
                      trains_vision=trains("vision/"), encodes=not stage.stored_features)


def mean_text(stage: StageConfig) -> tuple[float, float]:
    """Positions of text in an average sample, and those with a loss; forms without such a loss have none."""
    shares = [source.count or source.weight for source in stage.sources]
    text, supervised = (
        sum(share * TEXT.get(source.form, (0, 0))[k] for share, source in zip(shares, stage.sources, strict=True))
        / sum(shares) for k in (0, 1))
    return text, supervised


def _sample_flops(stage: StageConfig, model: ModelConfig, trainable: Flat) -> float:
    """Useful operations of an average sample."""
    text, supervised = mean_text(stage)
    length = model.connector.num_tokens + text
    return stage_flops(stage, model, trainable).count(
        {"positions": length, "pairs": length * (length + 1) / 2, "supervised": supervised, "images": 1})


def _count(flat: Flat) -> int:
    return sum(leaf.size for leaf in flat.values())


def text_table(costs: list[StageCost]) -> str:
    """The stages and their sum, in plain text."""
    lines = [f"{'stage':10s}{'samples':>12s}{'steps':>8s}{'trainable':>12s}{'of':>10s}{'exaFLOP':>10s}{'hours':>8s}"]
    for cost in costs:
        lines.append(f"{cost.stage:10s}{cost.samples:12,d}{cost.steps:8,d}{cost.trainable / 1e6:10,.1f} M"
                     f"{cost.parameters / 1e6:8,.0f} M{cost.flops / 1e18:10.1f}{cost.hours:8.1f}")
    lines.append(f"{'all':10s}{sum(c.samples for c in costs):12,d}{sum(c.steps for c in costs):8,d}{'':22s}"
                 f"{sum(c.flops for c in costs) / 1e18:12.1f}{sum(c.hours for c in costs):8.1f}")
    return "\n".join(lines)
