"""The registry: which categories there are, how they are built, how large they are and what their front is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from spatialllm_jax.errors import UserError
from spatialllm_jax.sources.rendered import creatures, furniture, palette, street, vehicles
from spatialllm_jax.sources.rendered.primitives import Colour, Mesh, fit

Builder = Callable[[float, float, float, Colour, np.random.Generator], Mesh]
Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Category:
    """One kind of object.

    Attributes:
        name: as questions speak of it.
        build: (length, width, height) in metres, colour, generator -> mesh in the builder frame.
        length, width, height: ranges in metres: along the front axis, across it, upwards.
        settings: where it occurs.
        front: what tells its front, in words; None when the category has no semantic front.
        colours: names from `palette.NAMED` that it may have.
        carries: whether small objects may stand on its flat top.
        small: whether it may stand on something.
    """

    name: str
    build: Builder
    length: Range
    width: Range
    height: Range
    settings: tuple[str, ...]
    front: str | None
    colours: tuple[str, ...] = palette.ALL
    carries: bool = False
    small: bool = False

    @property
    def has_front(self) -> bool:
        return self.front is not None


_IN, _OUT, _BOTH = ("indoor",), ("outdoor",), ("indoor", "outdoor")

CATEGORIES: dict[str, Category] = {category.name: category for category in (
    Category("car", vehicles.car, (3.7, 4.7), (1.65, 1.9), (1.4, 1.65), _OUT,
             "the end with the bonnet, the headlights and the windscreen"),
    Category("truck", vehicles.truck, (6.0, 8.0), (2.2, 2.5), (2.7, 3.4), _OUT, "the end with the driver's cab"),
    Category("bus", vehicles.bus, (8.0, 11.0), (2.4, 2.6), (2.9, 3.3), _OUT,
             "the end with the windscreen and the destination sign"),
    Category("bicycle", vehicles.bicycle, (1.6, 1.85), (0.5, 0.65), (1.0, 1.15), _OUT,
             "the end with the handlebar and the basket"),
    Category("motorcycle", vehicles.motorcycle, (1.9, 2.3), (0.7, 0.9), (1.1, 1.3), _OUT,
             "the end with the fork, the screen and the headlight"),
    Category("person", creatures.person, (0.45, 0.6), (0.48, 0.6), (1.5, 1.9), _BOTH, "the side of the face"),
    Category("dog", creatures.dog, (0.75, 1.05), (0.24, 0.34), (0.55, 0.8), _BOTH, "the end with the head",
             palette.FUR),
    Category("cat", creatures.cat, (0.45, 0.6), (0.15, 0.2), (0.34, 0.44), _BOTH, "the end with the head",
             palette.FUR, small=True),
    Category("horse", creatures.horse, (2.1, 2.6), (0.5, 0.65), (1.65, 2.0), _OUT, "the end with the head",
             ("black", "white", "brown", "gray")),
    Category("chair", furniture.chair, (0.45, 0.58), (0.43, 0.55), (0.82, 1.05), _IN,
             "the side opposite to the backrest, to which a sitter faces"),
    Category("sofa", furniture.sofa, (0.85, 1.0), (1.5, 2.3), (0.75, 0.92), _IN,
             "the side opposite to the backrest, to which a sitter faces"),
    Category("bed", furniture.bed, (1.9, 2.15), (0.95, 1.7), (0.85, 1.1), _IN,
             "the foot end, opposite to the headboard"),
    Category("desk", furniture.desk, (0.6, 0.8), (1.2, 1.6), (0.7, 0.78), _IN,
             "the side with the drawers, where one sits", carries=True),
    Category("television", furniture.television, (0.2, 0.3), (0.75, 1.2), (0.5, 0.75), _IN, "the screen",
             ("black", "white", "gray", "red", "blue"), small=True),
    Category("refrigerator", furniture.refrigerator, (0.62, 0.75), (0.6, 0.8), (1.5, 1.9), _IN,
             "the side with the doors and handles"),
    Category("bookshelf", furniture.bookshelf, (0.28, 0.38), (0.7, 1.1), (1.2, 2.0), _IN,
             "the open side with the books"),
    Category("cabinet", furniture.cabinet, (0.4, 0.55), (0.8, 1.2), (0.75, 1.05), _IN,
             "the side with the doors and handles", carries=True),
    Category("washing machine", furniture.washing_machine, (0.55, 0.65), (0.58, 0.64), (0.82, 0.9), _IN,
             "the side with the round door", ("white", "gray", "black", "blue", "red", "green")),
    Category("table", furniture.table, (0.7, 1.1), (0.9, 1.6), (0.68, 0.78), _IN, None, carries=True),
    Category("stool", furniture.stool, (0.34, 0.42), (0.34, 0.42), (0.42, 0.68), _IN, None),
    Category("lamp", furniture.lamp, (0.3, 0.45), (0.3, 0.45), (0.45, 1.6), _IN, None, small=True),
    Category("potted plant", creatures.potted_plant, (0.4, 0.6), (0.4, 0.6), (0.55, 1.1), _BOTH, None,
             ("green", "red", "purple", "yellow", "pink"), small=True),
    Category("tree", creatures.tree, (1.6, 2.6), (1.6, 2.6), (2.6, 4.2), _OUT, None,
             ("green", "orange", "yellow", "red")),
    Category("barrel", street.barrel, (0.55, 0.65), (0.55, 0.65), (0.8, 0.95), _OUT, None, small=True),
    Category("traffic cone", street.traffic_cone, (0.4, 0.5), (0.4, 0.5), (0.65, 0.85), _OUT, None,
             ("orange", "red", "yellow", "green", "blue"), small=True),
)}


def build(category: Category, size: tuple[float, float, float], colour: str, rng: np.random.Generator) -> Mesh:
    """A mesh of exactly `size` (length, width, height), base on z = 0, centred."""
    length, width, height = size
    return fit(category.build(length, width, height, palette.vary(colour, rng), rng), size)


def names(setting: str, chosen: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Categories of a setting, in the registry's order. Raises UserError for a name it does not have."""
    if chosen is not None:
        unknown = sorted(set(chosen) - set(CATEGORIES))
        if unknown:
            raise UserError(f"categories of the render settings name {', '.join(unknown)}, which the rendered "
                            f"source does not have; it has: {', '.join(CATEGORIES)}")
    return tuple(name for name, category in CATEGORIES.items()
                 if setting in category.settings and (chosen is None or name in chosen))
