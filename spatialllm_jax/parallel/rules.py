"""The one sharding table: parameter path -> logical axes -> mesh axes; optimizer moments follow by path."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from spatialllm_jax.errors import UserError

LogicalAxes = tuple[str | None, ...]

# Logical axis -> mesh axes (see `parallel.mesh`). Activations are split over the batch by both data axes and along
# the row by "context"; images have no row to split and are spread over all three.
MESH_AXES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "images": ("data", "fsdp", "context"),
    "embed": ("fsdp", "context"),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "layers": (),
    "patch": (),
    "positions": (),
    "rank": (),
}

_VIT = r"vision/[^/]+|text"
_ANY = rf"({_VIT}|llm)/(blocks|layers)"
# A kernel, or what stands for it in fewer bits (`models.quantize`): pairs and blocks follow each other along its
# inputs, so they are split where the inputs are.
_KERNEL = r"(kernel|kernel_int8|kernel_int4|scale_int4)"

# Path (whole match) -> the axes of the array. Every parameter of every model matches exactly one row; a test
# proves it. "layers" is the leading axis of stacked layers.
PARAMETERS: tuple[tuple[str, LogicalAxes], ...] = (
    (rf"{_ANY}/attention/(query|key|value)/{_KERNEL}", ("layers", "embed", "heads")),
    (rf"{_ANY}/attention/(query|key|value)/(bias|scale_int8)", ("layers", "heads")),
    (rf"{_ANY}/attention/out/{_KERNEL}", ("layers", "heads", "embed")),
    (rf"{_ANY}/mlp/(gate|up)/{_KERNEL}", ("layers", "embed", "mlp")),
    (rf"{_ANY}/mlp/(gate|up)/(bias|scale_int8)", ("layers", "mlp")),
    (rf"{_ANY}/mlp/down/{_KERNEL}", ("layers", "mlp", "embed")),
    (rf"{_ANY}/(attention/out|mlp/down)/scale_int8", ("layers", "embed")),
    (rf"{_ANY}/(attention/out|mlp/down)/bias", ("layers", None)),
    (rf"{_ANY}/(norm1|norm2)/(scale|bias)", ("layers", None)),
    (rf"{_ANY}/scale[12]", ("layers", None)),
    # LoRA: the side that touches the activations is split like the kernel's, the rank stays whole.
    (rf"{_ANY}/attention/(query|key|value)/lora_a", ("layers", "embed", "rank")),
    (rf"{_ANY}/attention/(query|key|value)/lora_b", ("layers", "rank", "heads")),
    (rf"{_ANY}/attention/out/lora_a", ("layers", "heads", "rank")),
    (rf"{_ANY}/attention/out/lora_b", ("layers", "rank", "embed")),
    (rf"{_ANY}/mlp/(gate|up)/lora_a", ("layers", "embed", "rank")),
    (rf"{_ANY}/mlp/(gate|up)/lora_b", ("layers", "rank", "mlp")),
    (rf"{_ANY}/mlp/down/lora_a", ("layers", "mlp", "rank")),
    (rf"{_ANY}/mlp/down/lora_b", ("layers", "rank", "embed")),
    # Ends of the towers.
    (r"vision/[^/]+/patch_embed/kernel", ("patch", "embed")),
    (r"vision/[^/]+/(patch_embed/bias|class_token)", (None,)),
    (r"vision/[^/]+/registers", (None, None)),
    (rf"({_VIT})/position_table", ("positions", "embed")),
    (rf"({_VIT})/(pre_norm|final_norm)/(scale|bias)", (None,)),
    (r"(vision|text)_projection/kernel", ("embed", None)),
    (r"logit_scale", ()),
    (r"connector/([^/]+/)?linear_\d+/kernel", ("embed", "mlp")),
    (r"connector/([^/]+/)?linear_\d+/bias", (None,)),
    (r"image_newline", (None,)),
    (r"(llm|text)/embedding", ("vocab", "embed")),
    (r"llm/norm/scale", (None,)),
    (r"llm/head/kernel", ("embed", "vocab")),
)


def path_string(path: tuple[Any, ...]) -> str:
    """A key path of `jax.tree_util` as "llm/layers/mlp/up/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def logical_axes(path: str, table: tuple[tuple[str, LogicalAxes], ...] = PARAMETERS) -> LogicalAxes:
    """The logical axes of the parameter at `path`.

    Raises:
        UserError: no row of the table matches, or more than one does.
    """
    rows = [(pattern, axes) for pattern, axes in table if re.fullmatch(pattern, path)]
    if not rows:
        raise UserError(f"parameter {path} matches no row of parallel.rules.PARAMETERS; add one for it")
    if len(rows) > 1:
        raise UserError(f"parameter {path} matches {len(rows)} rows of parallel.rules.PARAMETERS "
                        f"({' and '.join(pattern for pattern, _ in rows)}); make them exclusive")
    return rows[0][1]


def partition_spec(
    shape: tuple[int, ...], axes: LogicalAxes, mesh_shape: Mapping[str, int], what: str = "array",
    mesh_axes: Mapping[str, tuple[str, ...]] = MESH_AXES,
) -> PartitionSpec:
    """Where the axes of one array go.

    Axes that the mesh does not divide evenly stay whole, and the log says so.

    Raises:
        UserError: `axes` does not have one entry per dimension, names an unknown axis, or two dimensions
            claim one mesh axis.
    """
    if len(axes) != len(shape):
        raise UserError(f"{what} has shape {shape} but its sharding row names {len(axes)} axes {axes}")
    spec: list[tuple[str, ...] | str | None] = []
    taken: dict[str, str] = {}
    for size, name in zip(shape, axes, strict=True):
        if name is None:
            spec.append(None)
            continue
        if name not in mesh_axes:
            raise UserError(f"{what}: logical axis {name!r} is not in parallel.rules.MESH_AXES; add it there")
        split = tuple(axis for axis in mesh_axes[name] if mesh_shape.get(axis, 1) > 1)
        for axis in split:
            if axis in taken:
                raise UserError(f"{what}: mesh axis {axis!r} is claimed by both {taken[axis]!r} and {name!r}")
            taken[axis] = name
        ways = math.prod(mesh_shape[axis] for axis in split)
        if size % ways:
            logging.log_first_n(logging.INFO, "%s: axis %r of %d is not divisible by %d; it stays whole", 20,
                                what, name, size, ways)
            split = ()
        spec.append(split[0] if len(split) == 1 else split or None)
    return PartitionSpec(*spec)


def param_shardings(params: Any, mesh: Mesh) -> Any:
    """A tree of `NamedSharding` for a parameter tree (arrays or abstract).

    Raises:
        UserError: see `logical_axes` and `partition_spec`.
    """
    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_string(path)
        return NamedSharding(mesh, partition_spec(leaf.shape, logical_axes(name), mesh.shape, name))

    return jax.tree_util.tree_map_with_path(one, params)


def state_shardings(state: Any, params: Any, mesh: Mesh) -> Any:
    """Shardings for an optimizer state (or any tree) over `params`.

    A leaf whose path ends in a parameter's path and that has its shape (a moment, a gradient, an average) is
    sharded like that parameter; everything else (counters, factors) is replicated.
    """
    known = {path_string(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        parts = path_string(path).split("/")
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            if known.get(name) == leaf.shape:
                return NamedSharding(mesh, partition_spec(leaf.shape, logical_axes(name), mesh.shape, name))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(one, state)


def constrain(x: Array, axes: LogicalAxes) -> Array:
    """An activation with its axes split as the table says; no-op when no mesh is set (`jax.set_mesh`), and inside
    `jax.shard_map`, where arrays are one device's own.

    Axes that the mesh does not divide stay whole, silently: batches of one are common at inference.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return x
    spec = [axes_that_divide(name, size, mesh.shape) or None if name else None
            for size, name in zip(x.shape, axes, strict=True)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def axes_that_divide(name: str, size: int, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """Mesh axes over which a logical axis of this size is split; none where they do not divide it."""
    split = tuple(axis for axis in MESH_AXES[name] if mesh_shape.get(axis, 1) > 1)
    return split if size % math.prod(mesh_shape[axis] for axis in split) == 0 else ()
