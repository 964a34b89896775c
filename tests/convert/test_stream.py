"""From disk to disk and straight from a transformers folder: the same values as in memory, slice by slice."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from convert import from_hf
from convert.engine import abstract, family_of, plan_of
from convert.export import to_torch
from convert.folders import load, open_weights
from convert.plan import blocks
from spatialllm_jax.errors import UserError
from spatialllm_jax.models import store
from spatialllm_jax.models.presets import NANO_LLAMA
from spatialllm_jax.parallel.mesh import make_mesh
from spatialllm_jax.parallel.rules import param_shardings

LLAMA = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "rms_norm_eps": 1e-5,
         "tie_word_embeddings": True}


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(ml_dtypes.bfloat16), abstract(NANO_LLAMA))
    folder = tmp_path / "source"
    folder.mkdir()
    save_file(to_torch(params, "llama", NANO_LLAMA), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def flat(params, prefix="llm/"):
    return {prefix + "/".join(path): value for path, value in flatten_dict(params).items()}


def equal(ours, expected):
    assert set(ours) == set(expected)
    for path, value in expected.items():
        assert ours[path].dtype == value.dtype
        np.testing.assert_array_equal(np.asarray(ours[path]), value, err_msg=path)


@pytest.mark.parametrize("dtype", ["stored", "float32"])
def test_streaming_writes_what_memory_holds(source, tmp_path, dtype, monkeypatch):
    monkeypatch.setattr("convert.plan._BLOCK", 100)  # several blocks to a tensor
    result = from_hf.main([str(source), "--out", str(tmp_path / "out"), "--dtype", dtype, "--quiet"])
    expected = flat(load(source, None if dtype == "stored" else np.float32)[0])
    equal(store.load_params(tmp_path / "out"), expected)
    assert result["parameters"] == sum(value.size for value in expected.values())
    assert not (tmp_path / "out.partial").exists()


def test_training_reads_the_source_folder_with_any_sharding(source):
    """Every device gets its own slice, in the model's type, and no process reads what it does not hold."""
    expected = flat(load(source)[0])
    weights = open_weights(source, "llm")
    mesh = make_mesh(fsdp=2, tensor=4)
    shardings = flat(param_shardings({"llm": abstract(NANO_LLAMA)}, mesh), "")
    found = weights.load("llm", shardings, {path: np.float32 for path in weights.shapes})
    equal(found, expected)
    assert all(found[path].sharding.is_equivalent_to(shardings[path], found[path].ndim) for path in found)
    gate = "llm/layers/mlp/gate/kernel"
    assert len({str(shard.index) for shard in found[gate].addressable_shards}) == 8


def test_only_the_wanted_slice_is_read():
    """A slice of one layer touches no other layer's tensor."""
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), abstract(NANO_LLAMA))
    state = to_torch(params, "llama", NANO_LLAMA)
    fills = {fill.target: fill for fill in plan_of(state, "llama", NANO_LLAMA)}

    read = set()

    class Watched(dict):
        def __getitem__(self, name):
            read.add(name)
            return super().__getitem__(name)

    values = fills["layers/mlp/up/kernel"].read(Watched(state), (slice(1, 2), slice(0, 3), slice(None)))
    assert values.shape == (1, 3, 64) and read == {"model.layers.1.mlp.up_proj.weight"}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found(dtype, bad):
    values = np.full((40, 30), 3.0, dtype)
    values[0, 0] = np.finfo(np.float16).max  # large, but a number
    assert sum(block.size for _, block in blocks(values.T, "w")) == values.size
    values[17, 3] = bad
    for view in (values, values.T):
        with pytest.raises(UserError, match="tensor w holds values that are not finite"):
            list(blocks(view, "w"))


def test_a_nan_ends_the_conversion_and_nothing_is_left(source, tmp_path):
    state = to_torch(load(source)[0], "llama", NANO_LLAMA)
    state["model.layers.1.self_attn.k_proj.weight"][3, 4] = np.nan
    save_file(state, source / "model.safetensors")
    with pytest.raises(UserError, match=r"layers.1.self_attn.k_proj.weight holds values that are not finite"):
        from_hf.main([str(source), "--out", str(tmp_path / "out"), "--quiet"])
    assert not list(tmp_path.glob("out*"))
    with pytest.raises(UserError, match="not finite"):
        open_weights(source, "llm").load("llm")


def test_a_config_that_contradicts_the_tensors_is_refused_before_anything_is_written(source, tmp_path):
    (source / "config.json").write_text(json.dumps({**LLAMA, "intermediate_size": 60}))
    with pytest.raises(UserError, match=r"gate_proj.weight of shape \(64, 32\) does not fit .*\(32, 60\)"):
        from_hf.main([str(source), "--out", str(tmp_path / "out")])
    (source / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 1}))
    with pytest.raises(UserError, match=r"left over model.layers.1"):
        from_hf.main([str(source), "--out", str(tmp_path / "out")])
    assert not list(tmp_path.glob("out*"))


def test_layers_of_different_types_are_refused(source):
    state = dict(to_torch(load(source)[0], "llama", NANO_LLAMA))
    state["model.layers.1.mlp.up_proj.weight"] = state["model.layers.1.mlp.up_proj.weight"].astype(np.float16)
    with pytest.raises(UserError, match=r"mlp/up/kernel have different types, float32 and float16"):
        plan_of(state, family_of(NANO_LLAMA), NANO_LLAMA)


def test_a_model_folder_is_opened_through_the_same_door(source, tmp_path):
    from_hf.main([str(source), "--out", str(tmp_path / "out"), "--quiet"])
    equal(open_weights(tmp_path / "out", "llm").load("llm"), flat(load(source, None)[0]))
    with pytest.raises(UserError, match=r"holds no parameters under 'vision/clip'; it has llm"):
        open_weights(source, "vision/clip").load("vision/clip")
