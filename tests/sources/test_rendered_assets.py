"""Procedural objects and Sweet Home 3D meshes: exact sizes, fronts that show, uniform yaws."""

import zipfile

import numpy as np
import pytest
from scipy import stats

from spatialllm_jax.sources.rendered import RenderConfig, meshes
from spatialllm_jax.sources.rendered import renderer as gl
from spatialllm_jax.sources.rendered.catalogue import CATEGORIES, build, names
from spatialllm_jax.sources.rendered.layout import Asset, Placed, View, place, sample_view
from spatialllm_jax.sources.rendered.palette import NAMED
from spatialllm_jax.sources.rendered.scenery import compose
from spatialllm_jax.sources.rendered.source import _draw


def asset(name, rng):
    known = CATEGORIES[name]
    size = tuple(float(np.mean(r)) for r in (known.length, known.width, known.height))
    return Asset(name, known.colours[0], known.has_front, known.carries, known.small, size,
                 build(known, size, known.colours[0], rng))


def test_registry_is_rich_enough():
    fronted = [c for c in CATEGORIES.values() if c.has_front]
    assert len(fronted) >= 16 and len(CATEGORIES) - len(fronted) >= 3
    assert all(len(c.front.split()) >= 2 for c in fronted)
    assert all(set(c.colours) <= set(NAMED) for c in CATEGORIES.values())
    for setting in ("indoor", "outdoor"):
        assert sum(CATEGORIES[n].has_front for n in names(setting)) >= 8


@pytest.mark.parametrize("name", CATEGORIES)
def test_mesh_has_exactly_its_size_and_outward_triangles(name):
    thing = asset(name, np.random.default_rng(1))
    low, high = thing.mesh.bounds
    assert np.allclose(high - low, thing.size, atol=1e-5) and np.allclose(low[2], 0, atol=1e-6)
    assert np.allclose(low[:2] + high[:2], 0, atol=1e-5)
    lengths = np.linalg.norm(thing.mesh.normals, axis=1)
    assert np.allclose(lengths, 1, atol=1e-4)
    a, b, c = (thing.mesh.vertices[thing.mesh.faces[:, k]].astype(np.float64) for k in range(3))
    # Divergence theorem: parts that overlap count twice, so the sum bounds the volume from above; > 0: outward.
    assert np.einsum("fi,fi->f", a, np.cross(b, c)).sum() > 0
    assert len(thing.mesh.faces) < 4000


def test_front_and_back_look_different():
    size, focal = 96, 110.0
    try:
        draw = gl.renderer(size, 4)
    except gl.UserError as problem:
        pytest.skip(f"no OpenGL here: {problem}")
    pitch = np.radians(12)
    right, down = np.array([1.0, 0, 0]), np.array([0, -np.sin(pitch), -np.cos(pitch)])
    forward = np.cross(right, down)
    for name, known in CATEGORIES.items():
        thing = asset(name, np.random.default_rng(2))
        distance = 1.3 * np.linalg.norm(thing.size)
        view = View(np.array([0, 0, thing.size[2] / 2]) - forward * distance, np.stack([right, down, forward]),
                    np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]))
        pictures, masks = [], []
        for yaw in (-np.pi / 2, np.pi / 2, 0.0, np.pi):
            drawing = compose(np.random.default_rng(3), view, [Placed(thing, np.zeros(3), yaw)], known.settings[0])
            _, instances, _ = draw.truth(view, drawing, 1)
            pictures.append(draw.colour(view, drawing).astype(float))
            masks.append(instances == 1)
        front = masks[0] | masks[1]
        change = np.abs(pictures[0] - pictures[1]).max(-1)[front]
        if known.has_front:
            assert np.mean(change > 25) > 0.10, f"{name}: front and back differ on {np.mean(change > 25):.0%} only"
        # Seen from left and right, the outline or the paint tells where the front is.
        if name in ("car", "truck", "bus", "bicycle", "motorcycle", "person", "dog", "cat", "horse", "chair", "sofa",
                    "bed"):
            side = masks[2] | masks[3]
            change = np.abs(pictures[2] - pictures[3]).max(-1)[side]
            assert np.mean(change > 25) > 0.10, f"{name}: left and right views differ too little"


def test_yaws_are_uniform_and_relations_frequent():
    config = RenderConfig()
    yaws, bearing, parallel, facing, pairs, scenes = [], [], 0, 0, 0, 0
    for index in range(120):
        rng = np.random.Generator(np.random.Philox(key=[9, index]))
        setting = ("indoor", "outdoor")[index % 2]
        placed = place(config, sample_view(config, rng, setting), setting, 4, rng,
                       lambda done, top, setting=setting, rng=rng: _draw(config, rng, setting, done, top))
        if placed is None:
            continue
        scenes += 1
        for i, a in enumerate(placed):
            if not a.asset.has_front:
                continue
            yaws.append(a.yaw % (2 * np.pi))
            bearing.append((a.yaw - np.arctan2(*-a.position[1::-1])) % (2 * np.pi))
            for j, b in enumerate(placed):
                if i == j:
                    continue
                to = np.arctan2(*(b.position - a.position)[1::-1])
                facing += np.cos(a.yaw - to) > np.cos(np.radians(15))
                if b.asset.has_front and j < i:
                    pairs += 1
                    parallel += np.cos(a.yaw - b.yaw) > np.cos(np.radians(15))
    assert scenes > 60 and len(yaws) > 200
    for angles in (yaws, bearing):
        assert stats.kstest(np.array(angles) / (2 * np.pi), "uniform").pvalue > 0.001
        sides = np.histogram(np.array(angles), bins=4, range=(0, 2 * np.pi))[0] / len(angles)
        assert sides.max() < 0.33 and sides.min() > 0.17
    assert parallel / pairs > 30 / 360 * 1.15       # more often than chance
    assert facing / scenes > 0.6


def library(path, rotation=""):
    """A furniture library with one chair: a slab whose marked (red) end is at +z before rotation."""
    obj = ["mtllib m.mtl", "usemtl gray"]
    for x in (0, 2):
        for y in (0, 1):
            for z in (0, 4):
                obj.append(f"v {x} {y} {z}")
    obj += [f"f {a} {b} {c}" for a, b, c in ((1, 2, 3), (2, 4, 3), (5, 6, 7), (6, 8, 7), (1, 3, 5), (3, 7, 5),
                                            (1, 2, 5), (2, 6, 5), (3, 4, 7), (4, 8, 7))]
    obj += ["usemtl red", "f 2 4 6", "f 4 8 6"]
    properties = ("license=CC-0\nname#1=Chair\ncreator#1=Ann\\u00e9e\nmodel#1=/lib/c/c.obj\nwidth#1=45\ndepth#1=50\n"
                  f"height#1=90\n{rotation}\nname#2=Teapot\nmodel#2=/lib/t/t.obj\nwidth#2=1\ndepth#2=1\nheight#2=1\n"
                  "name#3=Deck chair\nmodel#3=/lib/d/d.obj\nwidth#3=50\ndepth#3=50\nheight#3=90\n")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(meshes.CATALOGUE, properties)
        archive.writestr("lib/c/c.obj", "\n".join(obj))
        archive.writestr("lib/c/m.mtl", "newmtl gray\nKd 0.5 0.5 0.5\nnewmtl red\nKd 0.9 0.1 0.1\n")


@pytest.mark.parametrize("rotation, front", [("", (1, 0, 0)), ("modelRotation#1=-1 0 0 0 1 0 0 0 -1", (-1, 0, 0)),
                                             ("modelRotation#1=0 0 1 0 1 0 -1 0 0", (0, 1, 0))])
def test_sweet_home_mesh_axes_size_and_credit(tmp_path, rotation, front):
    library(tmp_path / "a.sh3f", rotation)
    (model,) = meshes.models(str(tmp_path))
    assert model.category == "chair" and model.size == (0.5, 0.45, 0.9)
    for _ in range(2):      # parsed, then read back from the cache
        meshes.load.cache_clear()
        found, colour = meshes.load(model, str(tmp_path / "cache"), 100)
        low, high = found.bounds
        assert np.allclose(high - low, model.size, atol=1e-5) and colour == "gray"
        red = found.vertices[found.colours[:, 0] > 0.8]
        assert np.allclose((red.max(0) + red.min(0))[:2] / np.array(model.size[:2]), front[:2], atol=1e-4)
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 1
    assert meshes.load(model, None, 5) is None
    assert meshes.credits(str(tmp_path)) == [{"name": "Chair", "path": "lib/c/c.obj", "creator": "Année",
                                              "licence": "CC-0"}]


def test_names_map_to_categories():
    assert meshes.category_of("Siamese cat") == "cat" and meshes.category_of("Fridge") == "refrigerator"
    assert meshes.category_of("Wheelchair") is None and meshes.category_of("Teapot") is None
    assert set(meshes.NAMES) <= set(CATEGORIES)
