"""Pictures of single objects: rendered once, gone on with after a kill, meshes of val in no train picture."""

import pytest

from spatialllm_jax.errors import UserError
from spatialllm_jax.pose import objects, rendered
from spatialllm_jax.sources.rendered import meshes
from spatialllm_jax.sources.rendered.config import RenderConfig
from spatialllm_jax.sources.rendered.renderer import renderer

try:
    renderer(64, 1)
    _REASON = ""
except UserError as problem:
    _REASON = str(problem)

BASE = RenderConfig(image_size=64, samples=1, min_extent=0.4, max_extent=0.9)


@pytest.mark.skipif(bool(_REASON), reason=f"no OpenGL here: {_REASON}")
def test_written_once_and_gone_on_with(tmp_path):
    parts = rendered.splits(BASE, {"val": 1, "train": 3}, 4, ("car", "chair"))
    assert [(part.name, part.seed) for part in parts] == [("val", 9), ("train", 8)]
    assert rendered.write(tmp_path / "data", parts, progress=False) == {"val": 1, "train": 3}
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    lost = next((tmp_path / "data" / "images").rglob("rendered-8-000001.JPEG"))
    lost.unlink()                                   # as a kill between two pictures leaves it
    rendered.write(tmp_path / "data", parts, progress=False)
    assert {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()} == before
    found = objects.read(tmp_path / "data", "train")
    assert len(found) == 3 and {item.category for item in found} <= {"car", "chair"}
    assert all(-90 < item.angles[1] < 90 for item in found)
    with pytest.raises(UserError, match="pictures of other settings"):
        rendered.write(tmp_path / "data", rendered.splits(BASE, {"val": 1, "train": 3}, 5, ("car",)), progress=False)
    with pytest.raises(UserError, match="holds something else"):
        rendered.write(tmp_path, parts, progress=False)


def test_mistakes_in_what_to_render():
    with pytest.raises(UserError, match="category 'barrel' has no front"):
        rendered.splits(BASE, {"train": 1}, 0, ("barrel",))
    with pytest.raises(UserError, match="'test' is no list of ImageNet3D"):
        rendered.splits(BASE, {"test": 1}, 0)
    with pytest.raises(UserError, match="mesh_split='dev'"):
        RenderConfig(mesh_split="dev")


def test_mesh_splits_share_no_model(monkeypatch):
    """Variants of a model (same creator, same first word) stay together; a category with one group only trains."""
    known = [("car", "Concept Sedan 01", "A"), ("car", "Concept Sedan 02", "A"), ("car", "Van", "B"),
             ("car", "Suv", "C"), ("dog", "Dog", "A"), ("dog", "Dog sitting", "A")]
    made = tuple(meshes.Model("x.sh3f", f"{name}.obj", name, category, creator, "CC0", (1.0, 1.0, 1.0), (1.0,) * 9)
                 for category, name, creator in known)
    monkeypatch.setattr(meshes, "models", lambda folder: made)
    meshes.in_split.cache_clear()
    train, test = (set(meshes.in_split("here", split)) for split in ("train", "test"))
    assert train | test == set(made) == set(meshes.in_split("here", "all")) and not train & test
    assert {model.category for model in test} == {"car"} and len(test) >= 0.3 * 4
    assert "dog" not in meshes.categories("here", "test")
    sedans = {model in test for model in made if model.name.startswith("Concept")}
    assert len(sedans) == 1
    meshes.in_split.cache_clear()
