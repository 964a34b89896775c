"""Sweet Home 3D's furniture libraries as objects: `.sh3f` zips of OBJ models with a catalogue.

A catalogue gives name, size in centimetres, creator and, where needed, `modelRotation`; after that
rotation a model stands on y = 0 with its front along +z. Libraries: Debian package
`sweethome3d-furniture` (CC0 and CC-BY 3.0 among others: see `credits`).
"""

from __future__ import annotations

import colorsys
import dataclasses
import functools
import hashlib
import os
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from spatialllm_jax.errors import UserError
from spatialllm_jax.sources.rendered import catalogue
from spatialllm_jax.sources.rendered.primitives import Mesh, fit, flat, join, mesh

CATALOGUE = "PluginFurnitureCatalog.properties"
# Category <- names in the catalogues (whole name, any case).
NAMES = {
    "car": r"concept sedan.*|suv|smart car|vw new beetle|seat leon|renault scenic|peugeot 308 cc|ford focus"
           r"|chevrolet|van",
    "truck": r"truck",
    "bus": r"(city )?bus",
    "bicycle": r"bicycle|bike",
    "motorcycle": r"motorbike|yamaha.*|scooter",
    "person": r"(holding )?(male|female)|girl|boy",
    "dog": r"dog|bulldog",
    "cat": r"cat|siamese cat",
    "horse": r"horse",
    "chair": r"(\w+ )?chair|chair with cushion|(modern |rattan |winchester )?armchair",
    "sofa": r"(clear |burlap |rattan |winchester )?sofa( [23] seats)?|couch",
    "bed": r"bed|iron bed|child bed",
    "desk": r"(wooden )?desk|desk table",
    "television": r"tv( 16:9)?",
    "refrigerator": r"refrigerator|(large )?fridge",
    "bookshelf": r"(full )?bookcase",
    "cabinet": r"(drawers|filing|high|glass door|lower) cabinet|cupboard|dresser with drawers|chest"
               r"|bedside table|wardrobe",
    "washing machine": r"(clothes )?washing machine",
    "table": r"(coffee |wooden |rattan |oak |glass |technical |wooden teak |black |round )?table",
    "stool": r"(bar )?stool",
    "lamp": r"(little |desk )?lamp",
    "potted plant": r"(indoor |decorative |little |spider |succulent )?plant|ficus|yucca|bonsai tree",
    "tree": r"acacia|poplar|pine|cypress|japanese maple|sycamore maple|copper beech",
    "barrel": r"barrel",
    "traffic cone": r"cone",
}
# Names that the patterns catch but that are something else.
LEFT_OUT = r"motorbike|deck chair|folding chair|high chair|baby high chair|class seat|beach chair|wheelchair"
# Desks of the libraries look alike from opposite sides: no front is claimed for them.
WITHOUT_FRONT = ("desk",)
# Smallest and largest share of the registry's ranges: toys and miniatures are left out.
SIZE_SLACK = (0.6, 1.7)
# Least share of a category's models that `in_split` sets aside for tests, where the category has enough of them.
TEST_SHARE = 0.3


@dataclasses.dataclass(frozen=True)
class Model:
    """One entry of a catalogue.

    Attributes:
        library: path of the `.sh3f` file.
        path: of the OBJ file inside it.
        size: length (front axis), width, height in metres.
        rotation: nine numbers by rows, applied to the OBJ before anything else.
    """

    library: str
    path: str
    name: str
    category: str
    creator: str
    licence: str
    size: tuple[float, float, float]
    rotation: tuple[float, ...]

    @property
    def credit(self) -> str:
        """Where the mesh came from, in one line."""
        return f"{self.name} ({self.path}) by {self.creator}, {self.licence}"


def _properties(text: str) -> dict[str, str]:
    """The keys and values of a Java properties file."""
    result = {}
    for line in re.sub(r"\\\r?\n\s*", "", text).splitlines():
        line = line.strip()
        if line and line[0] not in "#!" and "=" in line:
            key, value = line.split("=", 1)
            result[key.strip()] = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), value.strip())
    return result


def category_of(name: str) -> str | None:
    """Our category for a name in the catalogues, or None."""
    if re.fullmatch(LEFT_OUT, name, re.IGNORECASE):
        return None
    return next((category for category, pattern in NAMES.items()
                 if re.fullmatch(pattern, name, re.IGNORECASE)), None)


def _library(path: Path) -> list[Model]:
    try:
        with zipfile.ZipFile(path) as archive:
            values = _properties(archive.read(CATALOGUE).decode("latin-1"))
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise UserError(f"{path} is not a furniture library of Sweet Home 3D ({error}); "
                        "fetch it again or take it out of the mesh folder") from None
    models = []
    for key in values:
        if not key.startswith("name#"):
            continue
        number = key[5:]
        category = category_of(values[key])
        try:
            depth, width, height = (float(values[f"{side}#{number}"]) / 100
                                    for side in ("depth", "width", "height"))
            model = values[f"model#{number}"].lstrip("/")
            rotation = tuple(float(v) for v in values.get(f"modelRotation#{number}", "1 0 0 0 1 0 0 0 1").split())
        except (KeyError, ValueError):
            continue
        if category is None or not model.endswith(".obj") or len(rotation) != 9:
            continue
        known = catalogue.CATEGORIES[category]
        if not SIZE_SLACK[0] * known.height[0] <= height <= SIZE_SLACK[1] * known.height[1] or not (
                SIZE_SLACK[0] * known.length[0] <= max(depth, width) or not known.has_front):
            continue
        models.append(Model(str(path), model, values[key], category, values.get(f"creator#{number}", "unknown"),
                            values.get(f"license#{number}", values.get("license", "unknown")),
                            (depth, width, height), rotation))
    return models


@functools.lru_cache(maxsize=4)
def models(folder: str) -> tuple[Model, ...]:
    """Entries of all `.sh3f` files of a folder that map to our categories, in a fixed order.

    Raises UserError when the folder has no such file or one cannot be read.
    """
    files = sorted(Path(folder).glob("*.sh3f"))
    if not files:
        raise UserError(f"mesh_folder={folder} holds no .sh3f file; point it at the folder "
                        "usr/share/sweethome3d/furniture of the Debian package sweethome3d-furniture")
    return tuple(model for file in files for model in _library(file))


def _colour(material: Any) -> tuple[Float[np.ndarray, " 3"], float]:
    """A material's mean colour (sRGB) and gloss."""
    image = getattr(material, "image", None)
    if image is not None:
        pixels = np.asarray(image.convert("RGB").resize((16, 16)), np.float32) / 255
        return pixels.mean((0, 1)), 0.1
    diffuse = np.asarray(getattr(material, "main_color", (150, 150, 150, 255)), np.float32)[:3] / 255
    specular = np.asarray(getattr(material, "specular", (0, 0, 0)), np.float32)[:3].mean() / 255
    return diffuse, float(min(0.4 * specular, 0.4))


def _read(model: Model) -> Mesh:
    """The mesh in the builder frame, unscaled."""
    import trimesh

    with zipfile.ZipFile(model.library) as archive:
        here = model.path.rsplit("/", 1)[0] + "/"
        files = {name[len(here):]: archive.read(name) for name in archive.namelist()
                 if name.startswith(here) and not name.endswith("/")}
    content = files[model.path[len(here):]]
    resolver = trimesh.resolvers.ZipResolver({name: trimesh.util.wrap_as_stream(data)
                                              for name, data in files.items()})
    scene: Any = trimesh.load(trimesh.util.wrap_as_stream(content), file_type="obj", resolver=resolver, process=False,
                         force="scene", split_object=False, group_material=True)
    # OBJ (x, y up, z front) -> builder (front, left, up) = (z, x, y).
    turn = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]) @ np.array(model.rotation).reshape(3, 3)
    parts = []
    for geometry in scene.geometry.values():
        if not isinstance(geometry, trimesh.Trimesh) or not len(geometry.faces):
            continue
        colour, gloss = _colour(getattr(geometry.visual, "material", None))
        vertices = geometry.vertices @ turn.T
        if "vertex_normals" in geometry._cache:
            parts.append(mesh(vertices, geometry.vertex_normals @ turn.T, np.asarray(geometry.faces), colour, gloss))
        else:
            parts.append(flat(vertices[geometry.faces], colour, gloss))
    if not parts:
        raise ValueError("no triangles")
    return join(parts)


def _cache_file(model: Model, cache: str) -> Path:
    library = Path(model.library)
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{library.stem}-{library.stat().st_size}-{model.path}")
    return Path(cache) / f"{name}.npz"


@functools.lru_cache(maxsize=512)
def load(model: Model, cache: str | None, max_faces: int) -> tuple[Mesh, str] | None:
    """The mesh at its catalogue size and its colour's name.

    None when it has more than `max_faces` faces or cannot be parsed.
    """
    file = _cache_file(model, cache) if cache else None
    if file is not None and file.exists():
        with np.load(file) as data:
            raw = Mesh(*(data[field.name] for field in dataclasses.fields(Mesh)))
    else:
        try:
            raw = _read(model)
        except ImportError:
            raise UserError("meshes need the package trimesh, which is not installed; "
                            'run: pip install "spatialllm-jax[render]"') from None
        except (ValueError, KeyError, IndexError, OSError):
            return None
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npz", delete=False) as out:
                np.savez(out, **{field.name: getattr(raw, field.name) for field in dataclasses.fields(Mesh)})
            os.replace(out.name, file)
    if len(raw.faces) > max_faces:
        return None
    return fit(raw, model.size), colour_name(raw)


_HUES = ((14, "red"), (46, "orange"), (70, "yellow"), (165, "green"), (255, "blue"), (318, "purple"),
         (342, "pink"), (361, "red"))       # upper ends in degrees


def _name(colour: Float[np.ndarray, " 3"]) -> str:
    """The word for an sRGB colour; muted or dark orange is brown, pale red is pink."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(float(v) for v in np.clip(colour, 0, 1)))
    if value < 0.2:
        return "black"
    if saturation < (0.27 if value > 0.75 else 0.18):
        return "white" if value > 0.72 else "gray"
    name = next(word for end, word in _HUES if 360 * hue < end)
    if name in ("orange", "yellow") and (value < 0.72 or saturation < 0.6):
        return "brown"
    if name == "red" and value < 0.4 and saturation < 0.75:
        return "brown"
    return "pink" if name == "red" and value > 0.7 and saturation < 0.55 else name


def colour_name(source: Mesh) -> str:
    """The named colour that covers most of the surface."""
    corners = source.vertices[source.faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    colours, which = np.unique(source.colours[source.faces[:, 0]], axis=0, return_inverse=True)
    totals: dict[str, float] = {}
    for colour, weight in zip(colours, np.bincount(which.ravel(), weights=area), strict=True):
        totals[_name(colour)] = totals.get(_name(colour), 0.0) + float(weight)
    return max(totals, key=lambda name: totals[name])


def credits(folder: str, categories: tuple[str, ...] | None = None) -> list[dict[str, str]]:
    """Name, creator and licence of every model that scenes of `categories` may use, for a credits page."""
    return [{"name": model.name, "path": model.path, "creator": model.creator, "licence": model.licence}
            for model in models(folder) if categories is None or model.category in categories]


def credit_list(folder: str) -> str:
    """`credits` of a whole folder as a Markdown list."""
    return "\n".join(f"- {entry['name']} (`{entry['path']}`) by {entry['creator']}: {entry['licence']}"
                     for entry in credits(folder))


@functools.lru_cache(maxsize=12)
def in_split(folder: str, split: str) -> tuple[Model, ...]:
    """The models of "train" or "test", two parts that share none, or "all".

    Models of one category whose creator and first word of the name agree ("Concept Sedan 01" and "02") may be variants
    of one mesh: they stay together. Per category, the groups whose hash comes first are for tests, until these are
    `TEST_SHARE` of its models; the last group always trains, so a category with a single one is in no test.
    """
    if split == "all":
        return models(folder)
    chosen: set[Model] = set()
    for category in sorted({model.category for model in models(folder)}):
        groups: dict[str, list[Model]] = {}
        for model in models(folder):
            if model.category == category:
                name = f"{category}/{model.creator}/{model.name.split()[0].lower()}"
                groups.setdefault(hashlib.sha256(name.encode()).hexdigest(), []).append(model)
        wanted, taken = TEST_SHARE * sum(map(len, groups.values())), 0
        for _, group in sorted(groups.items())[:-1]:
            if taken < wanted:
                chosen.update(group)
                taken += len(group)
    return tuple(model for model in models(folder) if (model in chosen) == (split == "test"))


def choose(folder: str, cache: str | None, max_faces: int, category: str, tallest: float | None,
           rng: np.random.Generator, split: str = "all") -> tuple[Mesh, str, str] | None:
    """A mesh of a category with its colour name and credit; None when the folder has none that will do."""
    fitting = [model for model in in_split(folder, split) if model.category == category
               and (tallest is None or model.size[2] <= tallest)]
    for index in rng.permutation(len(fitting)):
        found = load(fitting[index], cache, max_faces)
        if found is not None:
            scaled = dataclasses.replace(found[0], vertices=found[0].vertices * np.float32(rng.uniform(0.92, 1.08)))
            return scaled, found[1], fitting[index].credit
    return None


def categories(folder: str, split: str = "all") -> tuple[str, ...]:
    """Categories that the folder has models of in a split (`in_split`), in the registry's order."""
    present = {model.category for model in in_split(folder, split)}
    return tuple(name for name in catalogue.CATEGORIES if name in present)
