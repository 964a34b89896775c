"""The one sharding table."""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

# Logical axis -> mesh axes. Activations are split over the batch by both data axes.
MESH_AXES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}


def constrain(x: Array, logical_axes: tuple[str | None, ...]) -> Array:
    """`x` with its axes split as the table says; no-op when no mesh is set (`jax.set_mesh`).

    Axes that the mesh does not divide stay whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec: list[tuple[str, ...] | None] = []
    for size, name in zip(x.shape, logical_axes, strict=True):
        axes = tuple(a for a in MESH_AXES.get(name or "", ()) if mesh.shape.get(a, 1) > 1)
        ways = 1
        for axis in axes:
            ways *= mesh.shape[axis]
        spec.append(axes if axes and size % ways == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))
