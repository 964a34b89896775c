"""Training and inference start from a transformers folder as from a model folder."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import save_file

import convert
from convert import from_hf, to_hf
from convert.engine import abstract
from convert.engines import load_engine
from convert.export import to_torch
from convert.folders import open_weights
from convert.llama import config_to_hf
from spatialllm_jax.data.tokenizer import train
from spatialllm_jax.errors import UserError
from spatialllm_jax.inference import engine
from spatialllm_jax.inference.prompts import Prompt
from spatialllm_jax.models import store
from spatialllm_jax.models.config import ConnectorConfig
from spatialllm_jax.models.presets import preset
from spatialllm_jax.training import initial

TEXTS = ["Which object is closer to the camera, the car or the dog?", "the car", "the dog"]


@pytest.fixture(scope="module", params=["llava", "spatialllm"])
def model(request, tmp_path_factory):
    """A model folder as training leaves it: LLaVA's shape, or two encoders."""
    folder = tmp_path_factory.mktemp("run") / "model"
    tokenizer = train(TEXTS * 3, 320)
    config = preset("nano_clip" if request.param == "llava" else "nano")
    if request.param == "llava":
        config = config.replace(connector=ConnectorConfig(grid=2))
    config = config.replace(llm=dataclasses.replace(config.llm, vocab_size=384))
    rng = np.random.default_rng(0)
    store.save_model(folder, config, jax.tree.map(
        lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), abstract(config)))
    tokenizer.save(folder)
    (folder / "chat.json").write_text(json.dumps(
        {"template": "compact", "system": "", "image_size": 16, "resize": "stretch"}))
    return folder


def answers(opened):
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    prompts = [Prompt("a", buffer.getvalue(), text, ("the car", "the dog")) for text in TEXTS]
    return opened.generate(prompts, max_new_tokens=6), np.stack(opened.score(prompts, row_length=96))


def test_an_exported_folder_answers_as_the_model_does(model, tmp_path):
    to_hf.main([str(model), "--out", str(tmp_path / "hf")])
    from_hf.main([str(tmp_path / "hf"), "--out", str(tmp_path / "back"), "--quiet"])
    said, scores = answers(engine.load_engine(model, batch_size=2))
    for folder in (tmp_path / "hf", tmp_path / "back", model):
        again, rescored = answers(load_engine(folder, batch_size=2))
        assert again == said
        np.testing.assert_allclose(rescored, scores, rtol=1e-5)


def test_a_folder_that_cannot_answer_says_why(model, tmp_path):
    to_hf.main([str(model), "--out", str(tmp_path / "hf")])
    (tmp_path / "hf" / "chat.json").write_text('{"template": "compact"}')
    with pytest.raises(UserError, match=r"chat.json does not say how"):
        load_engine(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        load_engine(tmp_path / "hf")
    to_hf.main([str(model), "--out", str(tmp_path / "llm"), "--part", "llm"])
    with pytest.raises(UserError, match="LlamaConfig, not a whole model"):
        load_engine(tmp_path / "llm")


@pytest.fixture
def llama(tmp_path):
    """A bf16 Llama in transformers' form, of the nano model's shape."""
    config = preset("nano").llm
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(ml_dtypes.bfloat16), abstract(config))
    folder = tmp_path / "llama"
    folder.mkdir()
    save_file(to_torch(params, "llama", config), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_to_hf(config)))
    return folder, params


def test_training_takes_its_masters_in_float32(llama):
    """Values come from the folder, types from the model; what the folder lacks starts random."""
    folder, params = llama
    model = preset("nano")
    shapes = {"/".join(path): leaf for path, leaf in flatten_dict(abstract(model)).items()}
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    weights = {"llm": open_weights(folder, "llm")}
    initial.check_configs(weights, model)
    found = initial.gather(shapes, lambda key: jax.tree.map(
        lambda x: jax.random.normal(key, x.shape), abstract(model)), jax.random.key(0),
        dict.fromkeys(shapes, one), before={}, weights=weights)
    for path, value in flatten_dict(params).items():
        leaf = found["llm/" + "/".join(path)]
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(np.asarray(leaf), value.astype(np.float32))
    assert set(found) == set(shapes)


@pytest.mark.parametrize(("field", "value"), [("rope_theta", 7.0), ("rms_norm_eps", 0.1)])
def test_weights_of_another_computation_are_refused(llama, field, value):
    folder, _ = llama
    hf = json.loads((folder / "config.json").read_text())
    hf[field] = value
    hf.pop("rope_parameters", None)
    hf.pop("rope_scaling", None)
    (folder / "config.json").write_text(json.dumps(hf))
    with pytest.raises(UserError, match=r"llama has (rope_theta 7.0|norm_eps 0.1) in llm, the model has"):
        initial.check_configs({"llm": open_weights(folder, "llm")}, preset("nano"))


@pytest.mark.parametrize("name", ["clip", "llama", "whole"])
def test_the_library_door_is_a_round_trip(name, tmp_path):
    whole = preset("nano")
    config = {"clip": whole.vision[0], "llama": whole.llm, "whole": whole}[name]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(ml_dtypes.bfloat16), abstract(config))
    convert.save(tmp_path / "hf", config, params)
    found, again = convert.load(tmp_path / "hf")
    if name == "whole":  # how parameters started is not part of a checkpoint
        assert again.vision == whole.vision and again.connector == whole.connector
    assert jax.tree.structure(found) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(ml_dtypes.bfloat16)}
