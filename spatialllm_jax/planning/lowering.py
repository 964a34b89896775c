"""A stage's real step, compiled for a target from shapes alone: no weights, no data, no tokenizer, no device."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from spatialllm_jax.data.lengths import rows_for
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.attention import choose
from spatialllm_jax.models.config import ModelConfig
from spatialllm_jax.models.flops import StepFlops
from spatialllm_jax.parallel.mesh import data_ways, make_mesh
from spatialllm_jax.planning import hlo, work
from spatialllm_jax.planning.targets import GIB, Target
from spatialllm_jax.training import optimizer, program
from spatialllm_jax.training.config import StageConfig, stage_config
from spatialllm_jax.training.cost import mean_text, stage_flops
from spatialllm_jax.training.partition import split

# Without a GPU nothing can be timed, and untuned Triton products do not exist for every shape: leave them to cuBLAS.
_OPTIONS = {"cuda": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}}
INVOLUNTARY = "Involuntary full rematerialization"


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be compiled.

    Attributes:
        target: for what.
        config: of the run, as `configs/` gives it, resolved to plain values.
        stage: with its number of rows per step.
        model: of the run, attention chosen for the target.
        mesh: of the target's devices.
        rows: that a device holds at a time: of one micro-batch, on each of the ways that split the batch.
        samples_per_row: assumed mean.
    """

    target: Target
    config: Mapping[str, Any]
    stage: StageConfig
    model: ModelConfig
    mesh: Mesh
    rows: int
    samples_per_row: float

    @property
    def ways(self) -> int:
        """Parts that the batch is split into; the devices along other axes share a part's rows."""
        return data_ways(self.mesh)

    def with_rows(self, rows: int) -> Job:
        """The same with another number of rows per device."""
        batch = rows * self.ways * self.stage.accumulate
        stage = dataclasses.replace(self.stage, rows=dataclasses.replace(self.stage.rows, batch_size=batch, samples=0))
        return dataclasses.replace(self, stage=stage, rows=rows)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, as XLA assigns them.

    Attributes:
        argument: state and batch.
        output: new state and metrics; `alias` of them in the arguments' place.
        temporary: everything between.
        code: of the program.
        told: the peak as the compiler says, where it is its business that the program fits (TPUs); else 0.
    """

    argument: int
    output: int
    alias: int
    temporary: int
    code: int = 0
    told: int = 0

    @property
    def peak(self) -> int:
        """What the compiler says; else arguments, results that are not in their place, temporaries and code."""
        return self.told or self.argument + self.output - self.alias + self.temporary + self.code


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step.

    Attributes:
        rows: per device.
        memory: None where the compiler gave up for want of it.
        used: peak bytes; what the compiler said it would have needed, where it gave up.
        step: its work on one device, or None.
        useful: operations a step needs (`models.flops`) when every position is real, of one sample per row, and has
            a loss, and every image slot is filled; None for objectives without a count.
        instructions: of the optimised program.
        text: bytes of its text.
        lower_seconds, compile_seconds: how long it took here.
        involuntary: warnings that the partitioner replicates an array to change how it is split.
    """

    rows: int
    memory: Memory | None
    used: int
    step: work.StepWork | None = None
    useful: float | None = None
    instructions: int = 0
    text: int = 0
    lower_seconds: float = 0.0
    compile_seconds: float = 0.0
    involuntary: int = 0


def job(config: Mapping[str, Any], target: Target, devices: list[Any], stage_name: str = "", rows: int = 0,
        samples_per_row: float = 0.0) -> Job:
    """The step of a stage on a target.

    Args:
        config: resolved to plain values.
        stage_name: default: the last stage.
        rows: per device and micro-batch; default: what the config's step needs.
        samples_per_row: default: as many samples of mean length (`training.cost.TEXT`) as a row holds.

    Raises:
        UserError: no such stage, or rows that do not divide over the mesh.
    """
    names = list(config["stages"])
    name = stage_name or names[-1]
    if name not in names:
        raise UserError(f"--stage {name}: the config has no such stage; it has {', '.join(names)}")
    stage = stage_config(name, config["stages"][name])
    model = program.model_config(config)
    # The process itself runs on a CPU: "auto" is decided for the target.
    model = model.replace(attention=choose(model.attention, target.machine.platform))
    mesh = make_mesh(**config.get("mesh", {}), devices=devices)
    ways = data_ways(mesh) * stage.accumulate
    per_row = samples_per_row or _samples_per_row(stage, model)
    if not rows:
        batch = stage.rows.batch_size or rows_for(stage.rows.samples, per_row, ways)
        if batch % ways:
            raise UserError(f"stage {name!r}: batch_size {batch} does not divide over data x fsdp x accumulate = "
                            f"{ways}; give --rows per device, or another mesh")
        rows = batch // ways
    return Job(target, config, stage, model, mesh, 0, per_row).with_rows(rows)


def _samples_per_row(stage: StageConfig, model: ModelConfig) -> float:
    if stage.rows.layout != "pack":
        return 1.0
    length = model.connector.num_tokens + mean_text(stage)[0]
    return float(max(1, min(int(stage.rows.length / length), stage.rows.images)))


def compile_step(job: Job, on_program: Any = None) -> Compiled:
    """Compiles a step and reads what the program says of itself.

    Args:
        on_program: called with the text of the optimised program.

    Raises:
        UserError: the back end lacks something that the config asks for.
    """
    stage = job.stage
    parts = program.stage_parts(stage, job.config, job.model)
    tx = optimizer.build(stage.optimizer, stage.steps)
    state = program.abstract_state(stage, parts, tx, job.mesh)
    batch = program.abstract_batch(stage, job.model, job.mesh)
    useful = _useful(job, parts)
    platform = job.target.machine.platform
    started = time.monotonic()
    with jax.set_mesh(job.mesh), _caught_stderr() as said:
        step = program.jitted_step(stage, parts.config, tx, jax.tree.map(lambda leaf: leaf.sharding, state), job.mesh)
        lowered = step.trace(state, batch).lower(lowering_platforms=(platform,))
        lower_seconds, started = time.monotonic() - started, time.monotonic()
        try:
            compiled = lowered.compile(compiler_options=_OPTIONS.get(platform))
        except jax.errors.JaxRuntimeError as error:
            needed = out_of_memory(str(error))
            if needed is None:
                raise
            return Compiled(job.rows, None, needed, useful=useful, lower_seconds=lower_seconds,
                            compile_seconds=time.monotonic() - started)
        seconds, involuntary = time.monotonic() - started, said().count(INVOLUNTARY)
    stats, text = compiled.memory_analysis(), compiled.as_text()
    if on_program is not None:
        on_program(text)
    memory = Memory(stats.argument_size_in_bytes, stats.output_size_in_bytes, stats.alias_size_in_bytes,
                    stats.temp_size_in_bytes, stats.generated_code_size_in_bytes,
                    stats.peak_memory_in_bytes if platform == "tpu" else 0)
    module = hlo.parse(text)
    return Compiled(
        job.rows, memory, memory.peak, work.step_work(module, job.mesh.size, stage.rows.length), useful, module.size,
        len(text), lower_seconds, seconds, involuntary)


def _useful(job: Job, parts: program.Parts) -> float | None:
    stage = job.stage
    if stage.objective != "next_token" or not isinstance(parts.config, ModelConfig):
        return None
    trainable, _ = split(parts.abstract, stage.trainable)
    per: StepFlops = stage_flops(stage, parts.config, trainable)
    batch, length = stage.rows.batch_size, stage.rows.length
    return per.count({"positions": batch * length, "pairs": batch * length * (length + 1) / 2,
                      "supervised": batch * length, "images": batch * stage.rows.images})


def out_of_memory(message: str) -> int | None:
    """Bytes that a TPU's program would have needed, from the compiler's refusal; None for any other error."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message)
    if found:
        return int(float(found[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}[found[2]])
    return 2**62 if "RESOURCE_EXHAUSTED" in message and "hbm" in message.lower() else None


@contextlib.contextmanager
def _caught_stderr() -> Iterator[Any]:
    """Keeps what the compilers' own logs write to file descriptor 2, and yields a function that returns it.

    They warn of every fusion; the one warning that matters is counted, and the rest shown when compiling fails.
    """
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        def said() -> str:
            kept.seek(0)
            return kept.read().decode(errors="replace")

        os.dup2(kept.fileno(), 2)
        try:
            yield said
        except BaseException:
            os.dup2(before, 2)
            sys.stderr.write(said())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)
