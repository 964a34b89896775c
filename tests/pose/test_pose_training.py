"""Training a pose head: it learns, resumes to the bit, scores itself, and is loaded by the estimator."""

import itertools
import json
import os
import signal

import jax
import numpy as np
import pytest

from spatialllm_jax.data import images
from spatialllm_jax.errors import Interrupted, UserError
from spatialllm_jax.models import store
from spatialllm_jax.models.config import ModelConfig
from spatialllm_jax.models.presets import NANO_DINOV2, preset
from spatialllm_jax.pose import estimator, features, objects, scoring, training
from spatialllm_jax.training import loop
from spatialllm_jax.training.loop import Watch
from tests.compiled import compilation_cache  # noqa: F401
from tests.conftest import random_params
from tests.pose import written


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Data, and a model folder with a random nano encoder."""
    root = tmp_path_factory.mktemp("pose")
    config: ModelConfig = preset("nano").replace(vision=(NANO_DINOV2,))
    store.save_model(root / "weights", config, {"vision": random_params(config)["vision"]})
    return {"data": written.write(root / "data"), "weights": str(root / "weights"), "root": root}


def config(places, **changes):
    tree = {
        "task": "pose", "row": "pose", "size": "nano", "seed": 0, "weights": places["weights"], "encoder": "",
        "random_weights": False, "image_size": 0, "features": str(places["root"] / "features"),
        "model": {"layers": (0, 1), "grid": 1, "width": 16, "hidden": 32, "input_dropout": 0.0, "dropout": 0.1,
                  "context": 0.8},
        "data": {"path": places["data"], "mirror": False, "jitter": False},
        "training": {"steps": 60, "batch_size": 48, "log_every": 10, "save_every": 30,
                     "optimizer": {"learning_rate": 1e-2, "warmup": 0.05}},
        "mesh": {"data": -1}}
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    return tree


def train(tree, folder):
    return training.train(tree, folder, watch=Watch(progress=False))


@pytest.fixture(scope="module")
def trained(places):
    folder = places["root"] / "run"
    return folder, *train(config(places), folder)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_it_learns_what_the_pictures_tell(trained):
    folder, summary, scores = trained
    lines = [json.loads(line) for line in (folder / "head" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert lines[-1]["loss/azimuth"] < 0.75 * lines[0]["loss/azimuth"] and lines[-1]["samples_per_second"] > 0
    assert scores.overall.acc_30.acc > 0.85 and scores.overall.error.value < 15
    assert scores.constant.acc_30.acc < 0.4 and scores.overall.acc_30.chance == scores.constant.acc_30.acc
    assert set(scores.categories) == {"car", "chair", "table"} and scores.overall.n == 16
    assert sum(part.n for part in scores.categories.values()) == scores.sure.n + scores.unsure.n == 16
    assert json.loads((folder / "scores.json").read_text()) == json.loads(json.dumps(summary["scores"]))
    assert summary["model"] == str(folder / "head" / "model") and not (folder / "head" / "checkpoints").exists()


def test_resumed_to_the_bit(places, trained, tmp_path, monkeypatch):
    calls, to_device = itertools.count(1), loop.to_device

    def disturbed(*args):
        if next(calls) == 30:
            os.kill(os.getpid(), signal.SIGTERM)
        return to_device(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "to_device", disturbed)
        with pytest.raises(Interrupted) as stopped:
            train(config(places), tmp_path / "run")
    assert stopped.value.step == 30 and not (tmp_path / "run" / "head" / "model").exists()
    _, scores = train(config(places), tmp_path / "run")
    assert scores == trained[2]
    assert same(store.load_params(tmp_path / "run/head/model"), store.load_params(trained[0] / "head/model"))
    names = ("step", "loss", "accuracy", "loss/azimuth")
    pick = [[{name: json.loads(line)[name] for name in names} for line in
             (run / "head/metrics.jsonl").read_text().splitlines()] for run in (tmp_path / "run", trained[0])]
    assert pick[0] == pick[1]


def test_a_finished_run_is_only_scored_again(places, trained):
    before = (trained[0] / "head" / "metrics.jsonl").read_text()
    assert train(config(places), trained[0])[1] == trained[2]
    assert (trained[0] / "head" / "metrics.jsonl").read_text() == before


def test_the_estimator_gives_what_was_scored(places, trained):
    """From pictures and boxes, in batches padded to one shape: the same as from stored features (half precision)."""
    loaded = estimator.load(trained[0] / "head" / "model", batch_size=5)
    found = objects.read(places["data"], "val")
    crops = np.stack([item.crop(loaded.crop_size, loaded.config.context) for item in found])
    poses = loaded.estimate(crops)
    assert poses.angles.shape == (16, 3) and (poses.confidence > 0).all() and (poses.confidence <= 1).all()
    again = scoring.scores(poses.angles, poses.confidence, found,
                           np.array([item.angles for item in objects.read(places["data"], "train")]))
    assert again.overall.error.value == pytest.approx(trained[2].overall.error.value, abs=0.5)
    one = found[3]
    with open(one.path, "rb") as file:
        picture = images.decode(file.read())
    by_box = loaded.estimate_boxes(picture, [one.bbox, one.bbox])
    np.testing.assert_allclose(by_box.angles, poses.angles[[3, 3]], atol=1e-3)
    # Behind the picture's middle a rotation is allocentric; elsewhere it is turned with the ray.
    camera = np.array([[60.0, 0, 24], [0, 60, 24], [0, 0, 1]])
    rotation = by_box.rotations([one.bbox, [24, 8, 144, 40]], camera)
    turn = rotation[1] @ rotation[0].T
    np.testing.assert_allclose(turn @ [0, 0, 1], np.array([1, 0, 1]) / np.sqrt(2), atol=1e-6)
    assert loaded.estimate_boxes(picture, []).angles.shape == (0, 3)
    with pytest.raises(UserError, match="crops are float64"):
        loaded.estimate(np.zeros((1, 16, 16, 3)))


def test_features_stop_at_the_highest_layer_that_is_read(places):
    """Fewer blocks, the same tokens; CLS first, the map behind it."""
    params = random_params(preset("nano"))["vision"]["dinov2"]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    both = features.PoseConfig(NANO_DINOV2, layers=(1, 2), grid=4)
    low = features.PoseConfig(NANO_DINOV2, layers=(1,), grid=4)
    whole, part = (np.asarray(jax.jit(features.read_tokens, static_argnums=0)(c, params, pixels)) for c in (both, low))
    np.testing.assert_allclose(part, whole[..., :24], atol=1e-5)
    assert whole.shape == (2, 17, 48)
    np.testing.assert_allclose(whole.reshape(2, 17, 2, 24).mean(-1), 0, atol=1e-5)
    assert features.features_key(both, params) != features.features_key(low, params)


@pytest.mark.parametrize("changes, said", [
    ({"training": {"batch_size": 3}}, "batch_size 3 does not divide over 8"),
    ({"training": {"steps": 0}}, "steps 0"),
    ({"training": {"pace": 1}}, "config.training has no field 'pace'"),
    ({"training": {"keep_last": 0}}, "stage 'head': keep_last must be at least 1"),
    ({"training": {"log_every": 0}}, "log_every 0 must be at least 1"),
    ({"data": {"val_limit": -1}}, "val_limit -1 must not be negative"),
    ({"seed": -1}, "config.seed -1 must not be negative"), ({"weights": ""}, "config.weights is empty"),
    ({"model": {"output": "euler"}}, "pose.output 'euler'"),
    ({"model": {"layers": (7,)}}, "hidden states 0 to 2"),
    ({"image_size": 15}, "image size 15 is not a multiple of dinov2's patch of 4"),
    ({"encoder": "mae"}, "'mae' is not one of them"),
    ({"data": {"path": "missing/data"}}, "missing/data has no folder images"),
    ({"weights": "missing/weights"}, "missing/weights is not a model folder")])
def test_mistakes_leave_no_run_behind(places, tmp_path, changes, said):
    with pytest.raises(UserError) as problem:
        train(config(places, **changes), tmp_path / "run")
    assert said in str(problem.value) and not (tmp_path / "run").exists()


def test_no_estimator_in_a_folder(places):
    with pytest.raises(UserError, match="holds a ModelConfig, no pose estimator"):
        estimator.load(places["weights"])
    with pytest.raises(UserError, match="not a model folder"):
        estimator.load(places["root"])
