"""Checkpoints of a running stage: state and data position, saved asynchronously, restored exactly.

This is the one module that knows Orbax' manager.
"""

from __future__ import annotations

import dataclasses
import shutil
import uuid
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from spatialllm_jax.errors import UserError
from spatialllm_jax.training.step import TrainState


class Checkpoints:
    """Saves and restores (TrainState, data iterator) under one folder.

    Frozen parameters are not saved: they are those the stage began with (`TrainState.frozen` is taken from
    the state handed to `restore`). The data iterator's state is the same in all processes and for any number of them
    (`data.pipeline`), so that a run may go on with another number of hosts, and on another mesh.

    Args:
        save_every: steps between saves.
        keep_last: how many of the newest stay.
        keep_best: how many of those with the lowest loss stay beside them.
    """

    def __init__(self, folder: str | Path, save_every: int, keep_last: int = 2, keep_best: int = 0):
        self._ranks = keep_best > 0
        policies: list[Any] = [checkpoint_managers.LatestN(keep_last)]
        if keep_best:
            policies.append(checkpoint_managers.BestN(
                get_metric_fn=_loss, reverse=True, n=keep_best, keep_checkpoints_without_metrics=False))
        try:
            self._manager = ocp.CheckpointManager(
                Path(folder).absolute(),
                options=ocp.CheckpointManagerOptions(
                    save_interval_steps=save_every, best_fn=_loss if keep_best else None, best_mode="min",
                    preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies)))
        except OSError as error:
            raise UserError(f"cannot write checkpoints to {folder}: {error.strerror or error}") from None

    @property
    def latest(self) -> int | None:
        """The last complete step, or None."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The complete step whose loss was lowest, or None."""
        return self._manager.best_step()

    def maybe_save(self, step: int, state: TrainState, iterator: Any, loss: float | None = None, force: bool = False
                   ) -> bool:
        """Starts a save when one is due; returns whether it did. The arrays are copied before returning.

        Args:
            loss: what "best" goes by: the mean since the last logged step, when there is one.
        """
        if not force and not self._manager.should_save(step):
            return False
        if self._manager.latest_step() == step:
            return False
        items = ocp.args.Composite(state=ocp.args.StandardSave(_saved(state)),
                                   data=ocp.args.JsonSave(iterator.get_state()))
        ranked = {"loss": loss} if self._ranks and loss is not None else None
        return self._manager.save(step, force=force, metrics=ranked, args=items)

    def restore(self, step: int, state: TrainState, iterator: Any = None) -> TrainState:
        """The state at `step`, on the shardings of `state`; sets the iterator's position as well if there is one."""
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _saved(state))
        items: dict[str, Any] = {"state": ocp.args.StandardRestore(target)}
        if iterator is not None:
            items["data"] = ocp.args.JsonRestore()
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"the checkpoint at {self._manager.directory}/{step} does not fit this config "
                            f"({first}); use another workdir or the config it was made with") from None
        if iterator is not None:
            iterator.set_state(restored["data"])
        found: dict[str, Any] = restored["state"]
        return dataclasses.replace(state, **{**found, "rng": jax.random.wrap_key_data(found["rng"])})

    def wait(self) -> None:
        """Returns when pending saves are complete."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for pending saves, and ends."""
        self.wait()
        self._manager.close()


def _loss(metrics: Any) -> float:
    return float(metrics["loss"])


def _saved(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "trainable": state.trainable, "opt_state": state.opt_state,
            "rng": jax.random.key_data(state.rng), "skipped": state.skipped}


def saved_bytes(state: TrainState) -> int:
    """Size of one checkpoint."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(_saved(state)))


def check_room(folder: Path, state: TrainState, checkpoints: int, models: int) -> None:
    """Fails before the first step where the disk cannot hold what the stage will write.

    Args:
        folder: of the stage; made if it is not there.
        checkpoints: how many there are at a time, at most; one more is being written.
        models: bytes of the models that the stage leaves, frozen parameters included and none of them rounded.

    Raises:
        UserError: the folder cannot be written, or too little is free.
    """
    probe = folder / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror or error}); choose another --workdir") from None
    held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    need = (checkpoints + 1) * saved_bytes(state) + models - held
    if need > free:
        raise UserError(f"{folder} has {free / 2**30:.1f} GiB free, but {checkpoints + 1} checkpoints and the model "
                        f"take {need / 2**30:.1f} GiB; free space, choose another --workdir or lower keep_last")
