"""The conversion engine refuses whatever does not fit, by name; and reading checkpoints from disk."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from convert import from_hf
from convert.engine import abstract, family_of, to_jax
from convert.export import to_torch
from convert.folders import config_from_hf, load
from spatialllm_jax.errors import UserError
from spatialllm_jax.models import store
from spatialllm_jax.models.config import ConnectorConfig
from spatialllm_jax.models.linear import Params
from spatialllm_jax.models.presets import NANO_CLIP, NANO_DINOV2, NANO_LLAMA, clip_preset, preset
from spatialllm_jax.models.tensor_file import TensorFiles

CONFIGS = {"clip": NANO_CLIP, "dinov2": dataclasses.replace(NANO_DINOV2, swiglu=True, num_registers=2),
           "mae": preset("nano_clip_mae").vision[1], "llama": dataclasses.replace(NANO_LLAMA, tie_embeddings=False),
           "contrastive": clip_preset("nano"), "llava": preset("nano_clip").replace(connector=ConnectorConfig(grid=2)),
           "spatialllm": preset("nano")}


def random_params(config, seed=0) -> Params:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), abstract(config))


@pytest.mark.parametrize("family", CONFIGS)
def test_there_and_back(family):
    config = CONFIGS[family]
    assert family_of(config) == family
    params = random_params(config)
    jax.tree.map(np.testing.assert_array_equal, to_jax(to_torch(params, family, config), family, config), params)


@pytest.fixture
def state():
    return to_torch(random_params(NANO_CLIP), "clip", NANO_CLIP)


def test_missing_and_left_over_tensors_are_listed(state):
    del state["vision_model.encoder.layers.1.mlp.fc2.bias"]
    state["encoder.layers.2.mlp.fc2.bias"] = np.zeros(3)
    with pytest.raises(UserError, match=r"missing vision_model.encoder.layers.1.mlp.fc2.bias; left over encoder.lay"):
        to_jax(state, "clip", NANO_CLIP)


def test_two_spellings_of_one_tensor_are_refused(state):
    state["pre_layrnorm.bias"] = state["vision_model.pre_layrnorm.bias"]
    with pytest.raises(UserError, match=r"pre_norm/bias twice: vision_model.pre_layrnorm.bias and pre_layrnorm.bias"):
        to_jax(state, "clip", NANO_CLIP)


@pytest.mark.parametrize("shape", [(3,), (16, 17), (1, 16, 16)])
def test_other_shapes_are_refused(state, shape):
    state["vision_model.encoder.layers.0.self_attn.q_proj.weight"] = np.zeros(shape, np.float32)
    with pytest.raises(UserError, match=r"layers.0.self_attn.q_proj.weight of shape .* expects \(16, 16\)"):
        to_jax(state, "clip", NANO_CLIP)


def test_lora_must_be_merged_before_export():
    params = random_params(NANO_LLAMA)
    params["layers"]["mlp"]["up"]["lora_a"] = np.zeros((2, 32, 2))
    with pytest.raises(UserError, match=r"layers/mlp/up/lora_a is .* but config.json asks for nothing"):
        to_torch(params, "llama", NANO_LLAMA)


def test_two_encoders_do_not_fit_llava():
    with pytest.raises(UserError, match="one CLIP tower"):
        to_torch({}, "llava", preset("nano"))


def test_unknown_and_unsupported_configs_are_named():
    for hf, word in (({"model_type": "siglip"}, "siglip"), ({"model_type": "llama"}, "vocab_size|num_attention"),
                     ({"model_type": "llama", "attention_bias": True}, "attention_bias"),
                     ({"model_type": "llama", "rope_scaling": {"type": "yarn"}}, "yarn"),
                     ({"model_type": "spatialllm", "vision": []}, "connector"),
                     ({"model_type": "spatialllm", "vision": [], "connector": {"glue": 1}}, "glue"),
                     ({"model_type": "spatialllm", "vision": [{"name": "eye", "config": {"model_type": "siglip"}}]},
                      "'eye' is a 'siglip'")):
        with pytest.raises(UserError, match=word):
            config_from_hf(hf)


def folder(path, state):
    path.mkdir()
    save_file(state, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({
        "model_type": "clip_vision_model", "image_size": 16, "patch_size": 8, "hidden_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}))
    return path


def test_bad_folders_are_explained(tmp_path, state):
    with pytest.raises(UserError, match="not a folder"):
        load(tmp_path / "absent")
    good = folder(tmp_path / "good", state)
    assert load(good)[1] == NANO_CLIP
    (good / "model.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(UserError, match=r"model.safetensors is not a readable"):
        load(good)
    (good / "model.safetensors").rename(good / "weights.bin")
    with pytest.raises(UserError, match=r"pickles \(weights.bin\)"):
        load(good)
    (good / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load(good)


def test_shards_are_one_mapping_and_a_lost_one_is_named(tmp_path, state):
    names = sorted(state)
    tmp_path = folder(tmp_path / "sharded", state)
    (tmp_path / "model.safetensors").unlink()
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: state[name] for name in part}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": {name: file for file, part in halves.items() for name in part}}))
    assert set(TensorFiles(tmp_path)) == set(names)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model-2.safetensors"):
        TensorFiles(tmp_path)


def test_from_hf_writes_a_model_folder(tmp_path, state, capsys, tiny_tokenizer):
    source, out = folder(tmp_path / "source", state), tmp_path / "out"
    tiny_tokenizer.save(source)
    result = from_hf.main([str(source), "--out", str(out), "--name", "eye"])
    assert result["family"] == "clip" and result["tokenizer"] and "eye" not in capsys.readouterr().err
    assert store.load_config(out) == dataclasses.replace(NANO_CLIP, name="eye")
    loaded = store.load_params(out, "vision/eye")
    np.testing.assert_array_equal(loaded["vision/eye/patch_embed/kernel"],
                                  load(source)[0]["patch_embed"]["kernel"])
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="not a model folder"):
        from_hf.main([str(source), "--out", str(tmp_path / "other")])
    (tmp_path / "weights.h5").write_bytes(b"other")
    with pytest.raises(UserError, match=r"not a transformers folder"):
        from_hf.main([str(tmp_path / "weights.h5"), "--out", str(tmp_path / "new")])
    with pytest.raises(UserError, match="leave it out"):
        from_hf.main([str(source), "--out", str(tmp_path / "new"), "--vision-tower", str(source)])
    assert not (tmp_path / "new").exists()


def test_pickles_without_torch_ask_for_it(tmp_path, monkeypatch):
    (tmp_path / "mm_projector.bin").write_bytes(b"pickle")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install 'spatialllm-jax\[torch\]'"):
        from_hf.main([str(tmp_path / "mm_projector.bin"), "--out", str(tmp_path / "new")])


def test_a_hub_id_without_the_hub_is_explained(tmp_path):
    with pytest.raises(UserError, match=r"facebook/dinov2-large is not a folder here .*hf download"):
        from_hf.main(["facebook/dinov2-large", "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match=r"does not exist"):
        from_hf.main([str(tmp_path / "absent"), "--out", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


def test_the_processor_s_normalisation_is_read(tmp_path, state):
    source = folder(tmp_path / "source", state)
    assert load(source)[1].mean == NANO_CLIP.mean
    (source / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}')
    config = load(source)[1]
    assert (config.mean, config.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    (source / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.1, 0.2, 0.0]}')
    with pytest.raises(UserError, match=r"preprocessor_config.json: image_mean and image_std need three values"):
        load(source)
