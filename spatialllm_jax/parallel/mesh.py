"""The mesh of devices, and how batches come onto it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spatialllm_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of axes ("data", "fsdp", "tensor"); use it with `jax.set_mesh`.

    Args:
        data: ways of plain data parallelism (parameters repeated).
        fsdp: ways in which parameters and optimizer state are split; data parallel as well.
        tensor: ways in which heads, MLP width and vocabulary are split.
        devices: all of them, when not given.

    One of the three may be -1: whatever devices the other two leave.

    Raises:
        UserError: the product is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, tensor]
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"mesh data={data}, fsdp={fsdp}, tensor={tensor}: sizes are positive, and one may be -1")
    rest = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and len(devices) % rest == 0:
        sizes[sizes.index(-1)] = len(devices) // rest
    if int(np.prod(sizes)) != len(devices):
        raise UserError(f"mesh data={data}, fsdp={fsdp}, tensor={tensor} does not fit {len(devices)} devices; "
                        "their product must be the number of devices (one may be -1)")
    array = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over both data axes, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def local_batch_size(global_batch: int, mesh: Mesh) -> int:
    """Rows that this process feeds.

    Raises:
        UserError: the global batch does not divide over the data axes or the processes.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if global_batch % ways or global_batch % jax.process_count():
        raise UserError(f"batch size {global_batch} does not divide over data x fsdp = {ways} devices and "
                        f"{jax.process_count()} processes; choose a multiple of both")
    return global_batch // jax.process_count()


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows (a tree of host arrays) as its part of the global batch on the devices."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)
