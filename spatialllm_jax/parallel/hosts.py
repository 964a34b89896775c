"""Several processes as one program: starting them, agreeing on when to stop, and who writes.

All processes run the same commands on the same shared file system; process 0 writes what is written once.
"""

from __future__ import annotations

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from spatialllm_jax.errors import UserError


def start(coordinator: str = "", processes: int = 0, process_id: int = -1, auto: bool = False,
          local_devices: int = 0) -> None:
    """Joins the other processes; before anything else touches JAX.

    Args:
        coordinator: HOST:PORT of process 0; the environment decides when it is empty.
        processes, process_id: how many there are, and which this is.
        auto: let JAX find all of it (TPU slices, SLURM, Open MPI, Kubernetes).
        local_devices: how many devices of its node this process drives; 0 leaves it to JAX, which under SLURM and
            Open MPI takes one per process.

    Raises:
        UserError: for an incomplete description, or when the others cannot be reached.
    """
    if not coordinator and not auto:
        return
    if coordinator and (processes < 1 or not 0 <= process_id < processes):
        raise UserError(f"--coordinator {coordinator} also needs --processes N and --process-id from 0 to N - 1")
    try:
        mine = list(range(local_devices)) if local_devices else None
        if coordinator:
            jax.distributed.initialize(coordinator, processes, process_id, local_device_ids=mine)
        else:
            jax.distributed.initialize(local_device_ids=mine)
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"the processes of this run could not be joined ({first}); check --coordinator, or leave out "
                        "--distributed on a single machine") from None


def is_first() -> bool:
    """Whether this process writes the files that are written once."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Returns when all processes have come here; at once when there is only one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def whole(array: jax.Array) -> np.ndarray:
    """All of a global array, on every process."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def asked_to_stop(step: int) -> bool:
    """Whether the machines are being taken away, agreed on by all processes for the same step.

    Every process calls this with the same steps in the same order. Single processes have their own signal handler
    (`training.loop`).
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def described() -> str:
    """One line for the log: "process 0 of 2, 8 devices (4 here), NVIDIA A100-SXM4-80GB"."""
    devices = jax.devices()
    return (f"process {jax.process_index()} of {jax.process_count()}, {len(devices)} devices "
            f"({jax.local_device_count()} here), {devices[0].device_kind}, pid {os.getpid()}")
