"""Settings of the source `rendered`."""

from __future__ import annotations

import dataclasses

from spatialllm_jax.errors import UserError

SETTINGS = ("indoor", "outdoor")
ASSETS = ("procedural", "sweethome3d", "both")
MESH_SPLITS = ("all", "train", "test")
MAX_OBJECTS = 8


@dataclasses.dataclass(frozen=True)
class RenderConfig:
    """What scenes look like. Scene `i` depends on `(seed, i, config)` alone.

    Attributes:
        image_size: side of the square image in pixels.
        objects: smallest and largest number of objects per scene (at most 8).
        settings: drawn uniformly per scene, from "indoor" and "outdoor".
        assets: "procedural", "sweethome3d" (needs `mesh_folder`), or "both" (half of the objects each).
        mesh_folder: folder that holds the `.sh3f` files of Sweet Home 3D.
        mesh_cache: folder for parsed meshes (npz); None parses them again in each process.
        mesh_max_faces: meshes with more faces are left out.
        mesh_split: "all" meshes, or one of two parts that share none, "train" and "test" (`meshes.in_split`).
        categories: names to use; None is all that the assets have.
        distinct_categories: no category twice in a scene, so that a name points at one object.
        jpeg_quality: 1-100.
        field_of_view: smallest and largest horizontal field of view, degrees.
        max_roll: largest camera roll to either side, degrees.
        min_height: smallest projected height of an object, as a share of the image's height.
        min_extent: smallest larger side of an object's projection, same unit.
        max_extent: largest larger side of an object's projection, same unit.
        min_visibility: smallest share of an object's pixels that others leave visible.
        max_truncation: largest share of an object's 2D box outside the image.
        aligned: probability that a fronted object is turned parallel or opposed to an earlier one.
        facing: probability that a fronted object is placed so that it faces an earlier one.
        stacked: probability that a small object stands on an earlier one that carries it.
        raised: probability that a small object stands on a plain pedestal.
        raise_all: any object may, so that height says nothing about the category.
        samples: samples per pixel (multisample antialiasing); 0 or 1 is none.
    """

    image_size: int = 224
    objects: tuple[int, int] = (2, 5)
    settings: tuple[str, ...] = SETTINGS
    assets: str = "procedural"
    mesh_folder: str | None = None
    mesh_cache: str | None = None
    mesh_max_faces: int = 15_000
    mesh_split: str = "all"
    categories: tuple[str, ...] | None = None
    distinct_categories: bool = True
    jpeg_quality: int = 92
    field_of_view: tuple[float, float] = (45.0, 70.0)
    max_roll: float = 4.0
    min_height: float = 0.07
    min_extent: float = 0.14
    max_extent: float = 0.62
    min_visibility: float = 0.45
    max_truncation: float = 0.12
    aligned: float = 0.25
    facing: float = 0.25
    stacked: float = 0.3
    raised: float = 0.2
    raise_all: bool = False
    samples: int = 4

    def __post_init__(self) -> None:
        low, high = self.objects
        if not 1 <= low <= high <= MAX_OBJECTS:
            raise UserError(f"objects={self.objects} of the render settings must be two whole numbers "
                            f"between 1 and {MAX_OBJECTS}, smallest first")
        if not self.settings or set(self.settings) - set(SETTINGS):
            raise UserError(f"settings={self.settings} of the render settings must be taken from {SETTINGS}")
        if self.assets not in ASSETS:
            raise UserError(f"assets={self.assets!r} of the render settings must be one of {ASSETS}")
        if self.assets != "procedural" and not self.mesh_folder:
            raise UserError(f"assets={self.assets!r} needs mesh_folder: the folder that holds the .sh3f files")
        if self.mesh_split not in MESH_SPLITS:
            raise UserError(f"mesh_split={self.mesh_split!r} of the render settings must be one of {MESH_SPLITS}")
        if not 32 <= self.image_size <= 4096:
            raise UserError(f"image_size={self.image_size} of the render settings must be in 32..4096 pixels")
        if not 1 <= self.jpeg_quality <= 100:
            raise UserError(f"jpeg_quality={self.jpeg_quality} of the render settings must be in 1..100")
        if not 10 <= self.field_of_view[0] <= self.field_of_view[1] <= 120:
            raise UserError(f"field_of_view={self.field_of_view} of the render settings must be two angles "
                            "in 10..120 degrees, smallest first")
        for name in ("min_height", "min_extent", "max_extent", "min_visibility", "max_truncation",
                     "aligned", "facing", "stacked", "raised"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} of the render settings must be in 0..1")
        if self.aligned + self.facing > 1:
            raise UserError(f"aligned={self.aligned} and facing={self.facing} of the render settings must "
                            "not add up to more than 1")
