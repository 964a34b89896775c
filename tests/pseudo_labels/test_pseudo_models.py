"""Each real implementation loads a saved random model of its class and runs; what is missing or wrong is told."""

import dataclasses
import functools
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models are torch's: pip install torch")

from spatialllm_jax.errors import UserError  # noqa: E402
from spatialllm_jax.sources.crops import square_crop  # noqa: E402
from spatialllm_jax.sources.pseudo_labels.config import Filters, Judging, PseudoLabelConfig  # noqa: E402
from spatialllm_jax.sources.pseudo_labels.interfaces import Orientation  # noqa: E402
from spatialllm_jax.sources.pseudo_labels.models import small  # noqa: E402
from spatialllm_jax.sources.pseudo_labels.models.crops import CroppedOrientation  # noqa: E402
from spatialllm_jax.sources.pseudo_labels.models.depth import open_depth  # noqa: E402
from spatialllm_jax.sources.pseudo_labels.models.detection import (  # noqa: E402
    ClipTagger,
    GroundingDino,
    VocabularyTagger,
    nearest_tag,
)
from spatialllm_jax.sources.pseudo_labels.models.opening import open_estimators  # noqa: E402
from spatialllm_jax.sources.pseudo_labels.models.orient_anything import OrientAnything, angles_of  # noqa: E402
from spatialllm_jax.sources.pseudo_labels.models.segmentation import SegmentAnything  # noqa: E402
from tests.conftest import random_params  # noqa: E402

WORDS = ("car", "traffic light", "dog", "chair")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return small.write_small_models(tmp_path_factory.mktemp("models"), WORDS)


@pytest.fixture(scope="session")
def picture():
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)      # [96, 128, 3]


def config_of(models, **changes):
    return PseudoLabelConfig(models=dataclasses.replace(models, **changes), vocabulary=WORDS, most_tags=2,
                             vocabulary_chunk=3, judging=Judging(least_confidence=1e-6),
                             filters=Filters(confidence=0.0, box_threshold=0.0, text_threshold=0.0))


def test_clip_ranks_the_vocabulary(models, picture):
    """Cosines as transformers' CLIPModel gives them for one picture and all texts at once."""
    from PIL import Image
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    found = ClipTagger(config_of(models), "cpu").tags(picture)
    model = CLIPModel.from_pretrained(models.tagger).eval()
    texts = AutoTokenizer.from_pretrained(models.tagger)([f"a photo of a {w}" for w in WORDS], padding=True,
                                                         truncation=True, return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(models.tagger)(images=Image.fromarray(picture), return_tensors="pt")
    with torch.no_grad():
        logits = model(**texts, **pixels).logits_per_image[0].numpy()
    assert found == tuple(WORDS[k] for k in np.argsort(-logits)[:2])
    assert VocabularyTagger(WORDS).tags(picture) == WORDS


def test_grounding_dino_gives_boxes_in_the_picture(models, picture):
    found = GroundingDino(config_of(models), "cpu").detect(picture, WORDS)
    assert len(found.boxes) == len(found.scores) == len(found.labels) > 0
    assert set(found.labels) <= set(WORDS)
    assert (found.boxes >= 0).all() and (found.boxes[:, ::2] <= 128).all() and (found.boxes[:, 1::2] <= 96).all()
    strict = dataclasses.replace(config_of(models), filters=Filters(box_threshold=1.0))
    nothing = GroundingDino(strict, "cpu").detect(picture, WORDS)
    assert nothing.boxes.shape == (0, 4) and nothing.labels == ()


@pytest.mark.parametrize("phrase, tag", [
    ("traffic light", "traffic light"), ("light", "traffic light"), ("car traffic light", "traffic light"),
    ("CAR", "car"), ("", None), ("[UNK]", None), ("dog car", "dog"),
])  # fmt: skip
def test_phrases_are_tags(phrase, tag):
    assert nearest_tag(phrase, ("dog", "traffic light", "car")) == tag


@pytest.mark.parametrize("kind", ["sam2", "sam"])
def test_sam_segments_as_transformers_does(models, picture, kind, tmp_path):
    """The mask of a box, by hand from the model's own output for a picture that needs no resizing."""
    import transformers

    folder = models.segmenter
    if kind == "sam":
        folder = str(tmp_path)
        torch.manual_seed(0)
        small.sam(tmp_path)
    square = picture[:64, :64]
    boxes = np.array([[4.0, 8, 40, 50], [0, 0, 64, 64]])
    found = SegmentAnything(config_of(models, segmenter=folder), "cpu").segment(square, boxes)
    assert found.masks.shape == (2, 64, 64) and found.masks.dtype == bool
    model = getattr(transformers, {"sam": "SamModel", "sam2": "Sam2Model"}[kind]).from_pretrained(folder).eval()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = torch.tensor(((square / 255 - mean) / std).transpose(2, 0, 1)[None], dtype=torch.float32)
    with torch.no_grad():
        out = model(pixel_values=pixels, input_boxes=torch.tensor(boxes[None], dtype=torch.float32),
                    multimask_output=False)
        logits = torch.nn.functional.interpolate(out.pred_masks[0], (64, 64), mode="bilinear")[:, 0].numpy()
    clear = np.abs(logits) > 1e-4
    np.testing.assert_array_equal(found.masks[clear], (logits > 0)[clear])
    np.testing.assert_allclose(found.scores, np.clip(out.iou_scores[0, :, 0].numpy(), 0, 1), atol=1e-5)


def test_sam_works_on_any_aspect_and_many_boxes(models, picture, tmp_path):
    small.sam(tmp_path)
    boxes = np.tile([[4.0, 8, 100, 90]], (40, 1))
    for folder in (models.segmenter, str(tmp_path)):
        found = SegmentAnything(config_of(models, segmenter=folder), "cpu").segment(picture, boxes)
        assert found.masks.shape == (40, 96, 128)
        np.testing.assert_array_equal(found.masks[0], found.masks[39])      # of the second call, too


def test_depth_pro_is_metric_by_its_field_of_view(models, picture):
    """depth = 1 / (inverse · W / f), f = W / 2 / tan(fov / 2), from the model's own output."""
    from transformers import DepthProForDepthEstimation

    square = picture[:64, :64]
    found = open_depth(config_of(models), "cpu").depth(square)
    model = DepthProForDepthEstimation.from_pretrained(models.depth).eval()
    with torch.no_grad():
        out = model(torch.tensor((square / 255 - 0.5).transpose(2, 0, 1)[None] / 0.5, dtype=torch.float32))
    focal = 64 / 2 / np.tan(np.radians(float(out.field_of_view)) / 2)
    assert found.focal == pytest.approx(focal, rel=1e-4) and 40 < float(out.field_of_view) < 70
    inverse = torch.nn.functional.interpolate(out.predicted_depth[None] * 64 / focal, (64, 64), mode="bilinear")
    np.testing.assert_allclose(1 / found.depth, inverse[0, 0].clamp(1e-4, 1e4).numpy(), atol=1e-6)


def test_depth_anything_must_be_metric(models, picture, tmp_path):
    small.depth_anything(tmp_path / "metric")
    found = open_depth(config_of(models, depth=str(tmp_path / "metric")), "cpu").depth(picture)
    assert found.depth.shape == (96, 128) and found.focal is None and np.isfinite(found.depth).all()
    small.depth_anything(tmp_path / "relative", metric=False)
    with pytest.raises(UserError, match="Depth-Anything-V2-Metric"):
        open_depth(config_of(models, depth=str(tmp_path / "relative")), "cpu")


def test_orient_anything_reads_its_classes():
    logits = np.zeros(360 + 180 + 360 + 2)
    logits[[270, 360 + 100, 540 + 190]] = 5.0
    logits[-2:] = np.log([0.75, 0.25])
    found = angles_of(logits)
    assert (found.azimuth, found.elevation, found.theta) == (270.0, 10.0, 10.0)
    assert found.confidence == pytest.approx(0.75)
    narrow = np.zeros(360 + 180 + 60 + 2)
    narrow[540] = 5.0
    assert angles_of(narrow).theta == -30.0


def test_orient_anything_loads_its_own_format(models, picture):
    """The head's batch norm and the backbone, layer by layer, from the file itself."""
    from transformers import Dinov2Config, Dinov2Model

    estimator = OrientAnything(config_of(models), "cpu")
    found = CroppedOrientation(estimator, fronts=("car",)).orient(
        picture, np.array([[0.0, 0, 60, 60], [10, 10, 50, 90]]), ["car", "dog"])
    assert found[0] is not None and found[1] is None and 0 <= found[0].azimuth < 360
    state = torch.load(f"{models.orientation}/dino_weight.pt", weights_only=True)
    config = Dinov2Config.from_pretrained(models.orientation)
    told = Dinov2Model(config).state_dict()
    kept = estimator._backbone.state_dict()
    assert told.keys() == kept.keys()
    np.testing.assert_array_equal(kept["embeddings.cls_token"], state["dinov2.embeddings.cls_token"])
    # Two crops of one picture give the same answer, alone or together.
    crops = [square_crop(picture, np.array([0.0, 0, 60, 60]), 1.1), square_crop(picture, np.array([5.0, 5, 90, 90]), 1)]
    together, alone = estimator.viewpoints(crops), [estimator.viewpoints([crop])[0] for crop in crops]
    assert [(o.azimuth, o.elevation, o.theta) for o in together] == [(o.azimuth, o.elevation, o.theta) for o in alone]


def test_the_projects_own_estimator_takes_part(models, picture, tmp_path, monkeypatch):
    """A model folder as `configs/pose.py` leaves it: what its estimator says of the boxes asked, and no more."""
    import jax
    import jax.numpy as jnp

    from launch import pseudo_estimators
    from spatialllm_jax.models import pose, store
    from spatialllm_jax.models.presets import NANO_DINOV2, preset
    from spatialllm_jax.pose import estimator

    monkeypatch.setattr(estimator, "load", functools.cache(estimator.load))     # one program, in what it opens and here
    shape = pose.PoseConfig(NANO_DINOV2, layers=(1, -1), grid=2, width=8, hidden=16)
    rng, tokens = np.random.default_rng(0), jnp.zeros((1, shape.num_tokens, shape.channels))
    head = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
                        jax.eval_shape(pose.PoseHead(shape).init, jax.random.key(0), tokens)["params"])
    store.save_model(tmp_path / "pose", shape, {
        "encoder": random_params(preset("nano"))["vision"]["dinov2"], "head": head})
    config = dataclasses.replace(config_of(models, orientation=str(tmp_path / "pose")), fronts=("dog",))
    boxes = np.array([[0.0, 0, 9, 9], [10, 10, 50, 90], [30, 20, 60, 70]])
    found = pseudo_estimators.open_estimators(config).orientation.orient(picture, boxes, ["car", "dog", "dog"])
    said = estimator.load(str(tmp_path / "pose")).estimate_boxes(picture, boxes[1:])
    assert found == [None, *(Orientation(*angles, float(sure)) for angles, sure in zip(
        said.angles.tolist(), said.confidence, strict=True))]
    assert found[1] != found[2]


def test_crops_are_square_and_black_outside(picture):
    crop = square_crop(picture, np.array([-0.0, 0.0, 20.0, 40.0]), 1.5)
    assert crop.shape == (60, 60, 3)
    np.testing.assert_array_equal(crop[10:60, 20:60], picture[:50, :40])       # centred on (10, 20)
    assert not crop[:10].any() and not crop[:, :20].any()


@pytest.mark.parametrize("setting, advice", [
    ("detector", "grounding-dino-base"), ("segmenter", "sam2.1-hiera-large"), ("depth", "DepthPro"),
    ("tagger", "clip-vit-large"), ("orientation", "Orient-Anything"),
])  # fmt: skip
def test_a_missing_model_says_what_to_fetch(models, setting, advice, tmp_path):
    with pytest.raises(UserError, match=advice) as told:
        open_estimators(config_of(models, **{setting: str(tmp_path / "nowhere")}))
    assert f"pseudo_labels.models.{setting}" in str(told.value) and "\n" not in str(told.value)


def test_a_model_of_another_kind_is_named(models):
    with pytest.raises(UserError, match="'sam2'"):
        open_estimators(config_of(models, detector=models.segmenter))
    with pytest.raises(UserError, match="preprocessor_config"):
        broken = config_of(models, segmenter=_without(models.segmenter, "preprocessor_config.json"))
        open_estimators(broken)
    with pytest.raises(UserError, match="vocabulary"):
        open_estimators(dataclasses.replace(config_of(models), vocabulary=()))
    with pytest.raises(UserError, match="device"):
        open_estimators(config_of(models, device="warp"))


def _without(folder, file):
    import pathlib
    import shutil

    copy = pathlib.Path(folder).with_name("without")
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    (copy / file).unlink()
    return str(copy)


def test_weights_with_code_are_refused(models, tmp_path):
    import pickle
    import shutil

    folder = tmp_path / "bad"
    shutil.copytree(models.orientation, folder)
    (folder / "dino_weight.pt").write_bytes(pickle.dumps({"x": print}, protocol=2))
    with pytest.raises(UserError, match="cannot be read"):
        OrientAnything(config_of(models, orientation=str(folder)), "cpu")
    torch.save({"something": torch.zeros(3)}, folder / "dino_weight.pt")
    with pytest.raises(UserError, match="format"):
        OrientAnything(config_of(models, orientation=str(folder)), "cpu")
    other = json.loads((folder / "config.json").read_text())
    shutil.copy(f"{models.orientation}/dino_weight.pt", folder / "dino_weight.pt")
    (folder / "config.json").write_text(json.dumps({**other, "num_hidden_layers": 2}))
    with pytest.raises(UserError, match="lacks"):
        OrientAnything(config_of(models, orientation=str(folder)), "cpu")
