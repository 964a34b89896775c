"""The mesh of devices, and how batches come onto it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spatialllm_jax.errors import UserError

AXES = ("data", "fsdp", "context", "tensor")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, context: int = 1,
              devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of axes ("data", "fsdp", "context", "tensor"); use it with `jax.set_mesh`.

    Devices of several TPU slices are told apart by themselves: the slices follow each other along "data", the one axis
    whose traffic (gradients, once a step) a data-centre network carries. Everything else stays within a slice.

    Args:
        data: ways of plain data parallelism (parameters repeated).
        fsdp: ways in which parameters and optimizer state are split; data parallel as well.
        tensor: ways in which heads, MLP width and vocabulary are split.
        context: ways in which the positions of a row are split; parameters are split over it as over "fsdp".
        devices: all of them, when not given.

    One of the sizes may be -1: whatever devices the others leave.

    Raises:
        UserError: the product is not the number of devices, or "data" is no multiple of the number of slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, context, tensor]
    said = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"mesh {said}: sizes are positive, and one may be -1")
    rest = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and len(devices) % rest == 0:
        sizes[sizes.index(-1)] = len(devices) // rest
    if int(np.prod(sizes)) != len(devices):
        raise UserError(f"mesh {said} does not fit {len(devices)} devices; "
                        "their product must be the number of devices (one may be -1)")
    return Mesh(_arranged(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def read_mesh(text: str) -> Mesh:
    """The mesh that a flag describes: "fsdp=4,tensor=2"; axes left out are 1, a size of -1 is what is left.

    Raises:
        UserError: `text` does not read like that, or does not fit the devices.
    """
    sizes: dict[str, Any] = {}
    try:
        for part in text.split(","):
            axis, size = part.split("=")
            if axis.strip() not in AXES or axis.strip() in sizes:
                raise ValueError
            sizes[axis.strip()] = int(size)
    except ValueError:
        raise UserError(f"mesh {text!r}: give axes and sizes, such as fsdp=4,tensor=2; "
                        f"axes are {', '.join(AXES)}") from None
    return make_mesh(**{"data": 1, **sizes})


def _arranged(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices as an array of these sizes, neighbours in it near each other."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if sizes[0] % slices:
        raise UserError(f"mesh data={sizes[0]}: these devices are {slices} slices, and only the axis data goes from "
                        f"one to another; make it a multiple of {slices}")
    return mesh_utils.create_hybrid_device_mesh(
        [sizes[0] // slices, *sizes[1:]], [slices, *[1] * (len(sizes) - 1)], devices, allow_split_physical_axes=True)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over both data axes, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


@functools.cache      # asked with every batch
def share_of_rows(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """(k, n): a process feeds the k-th of n equal parts of every batch's rows.

    Processes that split a row between them (over "context" or "tensor") have the same share and feed it alike.

    Args:
        process: which; this one, when not given.

    Raises:
        UserError: the rows of the process's devices are no such part.
    """
    process = jax.process_index() if process is None else process
    ways = data_ways(mesh)
    mine = [row for row, devices in enumerate(mesh.devices.reshape(ways, -1))
            if any(device.process_index == process for device in devices)]
    size = len(mine)
    if not size or ways % size or mine != list(range(mine[0], mine[0] + size)) or mine[0] % size:
        raise UserError(f"mesh {dict(mesh.shape)}: the devices of process {process} hold parts {mine} of {ways} of a "
                        "batch; choose data and fsdp so that every process holds the same number of whole parts")
    return mine[0] // size, ways // size


def data_ways(mesh: Mesh) -> int:
    """Parts into which the rows of a batch are split."""
    return int(mesh.shape["data"] * mesh.shape["fsdp"])


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows (a tree of host arrays, see `share_of_rows`) as its part of the global batch."""
    sharding, (_, shares) = batch_sharding(mesh), share_of_rows(mesh)

    def one(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_process_local_data(sharding, x, (len(x) * shares, *x.shape[1:]))

    return jax.tree.map(one, batch)
