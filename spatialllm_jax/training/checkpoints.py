"""Checkpoints of a running stage: state and data position, saved asynchronously, restored exactly.

This is the one module that knows Orbax' manager.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from spatialllm_jax.errors import UserError
from spatialllm_jax.training.step import TrainState


class Checkpoints:
    """Saves and restores (TrainState, data iterator) under one folder.

    Frozen parameters are not saved: they are those the stage began with (`TrainState.frozen` is taken from
    the state handed to `restore`).
    """

    def __init__(self, folder: str | Path, save_every: int, keep: int = 2):
        try:
            self._manager = ocp.CheckpointManager(
                Path(folder).absolute(),
                options=ocp.CheckpointManagerOptions(save_interval_steps=save_every, max_to_keep=keep))
        except OSError as error:
            raise UserError(f"cannot write checkpoints to {folder}: {error.strerror or error}") from None

    @property
    def latest(self) -> int | None:
        """The last complete step, or None."""
        return self._manager.latest_step()

    def maybe_save(self, step: int, state: TrainState, iterator: Any, force: bool = False) -> bool:
        """Starts a save when one is due; returns whether it did. The arrays are copied before returning."""
        if not force and not self._manager.should_save(step):
            return False
        if self._manager.latest_step() == step:
            return False
        return self._manager.save(step, force=force, args=ocp.args.Composite(
            state=ocp.args.StandardSave(_saved(state)), data=grain.checkpoint.CheckpointSave(iterator)))

    def restore(self, step: int, state: TrainState, iterator: Any) -> TrainState:
        """The state at `step`, on the shardings of `state`; sets the iterator's position as well."""
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _saved(state))
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), data=grain.checkpoint.CheckpointRestore(iterator)))
        except (ValueError, KeyError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"the checkpoint at {self._manager.directory}/{step} does not fit this config "
                            f"({first}); use another workdir or the config it was made with") from None
        found: dict[str, Any] = restored["state"]
        return dataclasses.replace(state, **{**found, "rng": jax.random.wrap_key_data(found["rng"])})

    def close(self) -> None:
        """Waits for pending saves."""
        self._manager.wait_until_finished()
        self._manager.close()


def _saved(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "trainable": state.trainable, "opt_state": state.opt_state,
            "rng": jax.random.key_data(state.rng), "skipped": state.skipped}
