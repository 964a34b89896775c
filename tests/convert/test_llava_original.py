"""The original LLaVA's folders and stage-1 file, and PyTorch's pickles: what loads, is refused, and never runs."""

import dataclasses
import json
import pickle

import jax
import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pickled checkpoints need torch: pip install torch")

from safetensors.numpy import load_file, save_file  # noqa: E402

from convert import from_hf, llava_original, to_hf  # noqa: E402
from convert.export import to_torch  # noqa: E402
from convert.folders import config_from_hf, load, open_weights  # noqa: E402
from convert.pickles import Pickles  # noqa: E402
from spatialllm_jax.errors import UserError  # noqa: E402
from spatialllm_jax.inference.engine import load_engine  # noqa: E402
from spatialllm_jax.models import store  # noqa: E402
from spatialllm_jax.models.config import ConnectorConfig, Tiling  # noqa: E402
from spatialllm_jax.models.presets import CLIP_L_336, VICUNA_7B, preset  # noqa: E402
from spatialllm_jax.models.spatialllm import SpatialLLM, abstract_params, init_params  # noqa: E402
from spatialllm_jax.training import initial  # noqa: E402
from spatialllm_jax.training.partition import flatten  # noqa: E402
from tests.convert.test_engine import random_params  # noqa: E402

NANO = preset("nano_clip")
TOWER = NANO.vision[0]
CONFIG = NANO.replace(llm=dataclasses.replace(NANO.llm, tie_embeddings=False),
                      connector=ConnectorConfig(grid=TOWER.grid))
LLM = {"vocab_size": CONFIG.llm.vocab_size, "hidden_size": CONFIG.llm.width, "num_hidden_layers": CONFIG.llm.depth,
       "num_attention_heads": CONFIG.llm.num_heads, "num_key_value_heads": CONFIG.llm.num_kv_heads,
       "head_dim": CONFIG.llm.head_dim, "intermediate_size": CONFIG.llm.mlp_dim, "rope_theta": CONFIG.llm.rope_theta,
       "rms_norm_eps": CONFIG.llm.norm_eps}
HF = {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava", "mm_vision_tower": "./my-clip",
      "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": TOWER.width, "mm_vision_select_layer": -2,
      "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad", "mm_use_im_start_end": False, **LLM}
CLIP = {"model_type": "clip_vision_model", "image_size": TOWER.image_size, "patch_size": TOWER.patch_size,
        "hidden_size": TOWER.width, "num_hidden_layers": TOWER.depth, "num_attention_heads": TOWER.num_heads,
        "intermediate_size": TOWER.mlp_dim}


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def original(params, config=CONFIG):
    """The whole model under the original repository's names."""
    state = {}
    for name, value in to_torch(params, "llava" if config.tiling is None else "llava_next", config).items():
        for theirs, mine in (("vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model."),
                             ("multi_modal_projector.linear_1", "model.mm_projector.0"),
                             ("multi_modal_projector.linear_2", "model.mm_projector.2"),
                             ("image_newline", "model.image_newline"), ("language_model.", "")):
            name = name.replace(theirs, mine) if name.startswith(theirs) else name
        state[name] = value
    return state


def without_tower(state):
    return {name: value for name, value in state.items() if "vision_tower" not in name}


def written(folder, state, hf=HF):
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(hf))
    return folder


@pytest.fixture
def tower(tmp_path, params):
    """A CLIP folder with the model's own vision tower."""
    return written(tmp_path / "my-clip", to_torch(params["vision"]["clip"], "clip", TOWER), CLIP)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_folder_with_its_tower(tmp_path, params, tower):
    source = written(tmp_path / "llava", original(params))
    with pytest.raises(UserError, match=r"mm_vision_tower './my-clip' is not one of .*--vision-tower"):
        load(source)
    found, config = load(source, vision_tower=tower)
    assert config == CONFIG
    equal(found, params)


def test_its_own_trained_tower_wins(tmp_path, params, tower):
    state = original(params)
    name = "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding"
    state[name] = state[name] + 1
    found, _ = load(written(tmp_path / "llava", state), vision_tower=tower)
    np.testing.assert_array_equal(found["vision"]["clip"]["class_token"], params["vision"]["clip"]["class_token"] + 1)


def test_folder_without_tower_is_completed_by_the_flag(tmp_path, params, tower, capsys):
    source = written(tmp_path / "llava", without_tower(original(params)), {**HF, "model_type": "llava_llama"})
    result = from_hf.main([str(source), "--out", str(tmp_path / "whole"), "--vision-tower", str(tower)])
    assert result["family"] == "llava" and "--vision-tower" not in capsys.readouterr().out
    flat = store.load_params(tmp_path / "whole")
    assert any(path.startswith("vision/clip/") for path in flat) and store.load_config(tmp_path / "whole") == CONFIG
    np.testing.assert_array_equal(flat["vision/clip/class_token"], params["vision"]["clip"]["class_token"])


def test_folder_without_tower_says_so(tmp_path, params, tower, monkeypatch, capsys, tiny_tokenizer):
    monkeypatch.setitem(llava_original.TOWERS, "my-clip", TOWER)
    source, out = written(tmp_path / "llava", without_tower(original(params))), tmp_path / "part"
    found, config = load(source)
    assert config == CONFIG
    equal(found, {"connector": params["connector"], "llm": params["llm"]})
    from_hf.main([str(source), "--out", str(out)])
    assert "--vision-tower FOLDER completes it" in capsys.readouterr().out
    tiny_tokenizer.save(out)
    (out / "chat.json").write_text('{"template": "vicuna_v1", "system": null, "image_size": 16, "resize": "pad"}')
    with pytest.raises(UserError, match=r"lacks \d+ of the model's parameters, first vision/clip"):
        load_engine(out)


def test_logits_equal_those_of_the_llava_hf_form(tmp_path, params, tower):
    """The same weights by both roads give the same words, and the tower is the one of the flag."""
    text = {**LLM, "model_type": "llama"}
    hf = written(tmp_path / "hf", to_torch(params, "llava", CONFIG),
                 {"model_type": "llava", "vision_config": CLIP, "text_config": text})
    source = written(tmp_path / "llava", without_tower(original(params)))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 1, TOWER.image_size, TOWER.image_size, 3), dtype=np.uint8)
    tokens = np.random.default_rng(1).integers(0, 60, (1, 12))
    index = np.array([[-1, -1, *range(CONFIG.connector.num_tokens)] + [-1] * 12])[:, :12]
    one = np.ones_like(tokens)

    def run(model):
        return model.logits(model(tokens, np.arange(12)[None], one, 0 * one, index, images=pixels))

    logits = [jax.jit(lambda p, config=config: SpatialLLM(config).apply({"params": p}, method=run))(found)
              for found, config in (load(hf), load(source, vision_tower=tower))]
    np.testing.assert_array_equal(logits[0], logits[1])


def test_anyres_folders_are_llava_next(tmp_path, tower):
    """LLaVA-1.6 as the authors publish it: (width, height) pinpoints and model.image_newline."""
    size = TOWER.image_size
    config = CONFIG.replace(tiling=Tiling(((size, 2 * size), (size, size))))
    params = random_params(config)
    hf = {**HF, "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad",
          "image_grid_pinpoints": [[2 * size, size], [size, size]]}
    found, loaded = load(written(tmp_path / "llava", original(params, config), hf), vision_tower=tower)
    assert loaded == config
    equal(found, params)
    plain = tmp_path / "llava" / "config.json"
    plain.write_text(json.dumps(HF))
    with pytest.raises(UserError, match=r"left over model\.image_newline"):
        load(tmp_path / "llava", vision_tower=tower)
    plain.write_text(json.dumps({**hf, "image_grid_pinpoints": "(1x1),...,(6x6)"}))
    with pytest.raises(UserError, match=r"image_grid_pinpoints .* give a list of \[width, height\]"):
        load(tmp_path / "llava", vision_tower=tower)
    plain.write_text(json.dumps({**hf, "mm_patch_merge_type": "flat"}))
    with pytest.raises(UserError, match="mm_patch_merge_type 'flat'"):
        load(tmp_path / "llava", vision_tower=tower)


def test_published_config():
    config = config_from_hf({
        "model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 4096,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 1024, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad", "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "intermediate_size": 11008, "rms_norm_eps": 1e-5, "rope_scaling": None})
    assert config.vision == (CLIP_L_336,) and config.llm == VICUNA_7B
    assert config.connector.num_tokens == 576 and config.tiling is None


@pytest.mark.parametrize(("change", "word"), [
    ({"mm_projector_type": "resampler"}, "resampler"), ({"mm_vision_select_feature": "cls_patch"}, "cls_patch"),
    ({"mm_hidden_size": 7}, "mm_hidden_size 7"), ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
    ({"mm_projector_type": "linear"}, r"left over model\.mm_projector\.2\.bias"),
    ({"hidden_size": None}, "the field 'hidden_size' is missing")])
def test_configs_that_do_not_fit_are_named(tmp_path, params, tower, change, word):
    if change == {"hidden_size": None}:
        hf = {key: value for key, value in HF.items() if key != "hidden_size"}
    else:
        hf = {**HF, **change}
    with pytest.raises(UserError, match=word):
        load(written(tmp_path / "llava", original(params), hf), vision_tower=tower)


def test_no_tensor_is_dropped_or_missed(tmp_path, params, tower):
    state = original(params)
    for number, (change, word) in enumerate((
            ({"model.extra.weight": np.zeros(3, np.float32)}, "left over model.extra.weight"),
            ({"model.vision_tower.extra": np.zeros(3, np.float32)}, r"left over model\.vision_tower\.extra"),
            ({"model.vision_tower.vision_tower.extra": np.zeros(3, np.float32)}, r"left over .*vision_tower\.extra"),
            ({"model.mm_projector.4.weight": np.zeros((3, 3), np.float32)}, "left over model.mm_projector.4.weight"),
            ({"model.mm_projector.0.bias": np.zeros(3, np.float32)}, r"mm_projector\.0\.bias of shape \(3,\)"),
            ({"mm_projector.0.bias": np.zeros(3, np.float32)}, "twice"))):
        with pytest.raises(UserError, match=word):
            load(written(tmp_path / str(number), {**state, **change}), vision_tower=tower)
    for number, name in enumerate(("lm_head.weight", "model.mm_projector.2.bias", "model.layers.1.mlp.up_proj.weight")):
        part = {key: value for key, value in state.items() if key != name}
        with pytest.raises(UserError, match=f"missing {name}"):
            load(written(tmp_path / f"lacks{number}", part), vision_tower=tower)
    with pytest.raises(UserError, match="holds a 'llava' model; give a CLIP"):
        load(tmp_path / "0", vision_tower=tmp_path / "0")


# ---- PyTorch's own files

def as_torch(state):
    return {name: torch.tensor(value) for name, value in state.items()}


def projector_of(params):
    return {name: value for name, value in original(params).items() if "mm_projector" in name}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_stage_one_projector_starts_training(tmp_path, params, new):
    file, out = tmp_path / "mm_projector.bin", tmp_path / "connector"
    torch.save(as_torch(projector_of(params)), file, _use_new_zipfile_serialization=new)
    assert from_hf.main([str(file), "--out", str(out)])["family"] == "connector"
    config = store.load_config(out)
    assert (config.layers, config.hidden, config.mix, config.grid) == (2, None, "concat", 24)
    found = store.load_params(out, "connector")
    expected = {f"connector/{name}/{leaf}": value for name, linear in params["connector"].items()
                for leaf, value in linear.items()}
    equal({path: np.asarray(leaf) for path, leaf in found.items()}, expected)
    # config.weights.connector: the rest of the model starts random.
    shapes, single = flatten(abstract_params(CONFIG)), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    started = initial.gather(shapes, lambda key: init_params(CONFIG, key), jax.random.key(0),
                             dict.fromkeys(shapes, single), before={},
                             weights={"connector": open_weights(out, "connector")})
    equal({path: np.asarray(started[path]) for path in expected}, expected)


def test_linear_and_odd_projectors(tmp_path):
    weight, file = np.arange(12, dtype=np.float32).reshape(3, 4), tmp_path / "mm_projector.bin"

    def read(**state):
        torch.save(as_torch(state), file)
        opened, config = llava_original.open_projector(file)
        return {fill.target: fill.read(opened) for fill in llava_original.plan(opened, config)}, config

    for stem in ("mm_projector", "model.mm_projector", "model.mm_projector.0"):     # the last is mlp1x_gelu
        found, config = read(**{f"{stem}.weight": weight, f"{stem}.bias": weight[:, 0]})
        assert config.layers == 1
        np.testing.assert_array_equal(found["connector/linear_0/kernel"], weight.T)
    two = {f"model.mm_projector.{k}": value for k, value in {
        "0.weight": np.ones((5, 4), np.float32), "0.bias": weight[0, [0] * 5], "2.weight": np.ones((3, 5), np.float32),
        "2.bias": weight[:, 0]}.items()}
    assert read(**two)[1].hidden == 5
    for change, word in (({"model.mm_projector.2.weight": weight}, "does not follow on one of 5 outputs"),
                         ({"model.mm_projector.4.weight": weight[:, :3]}, r"missing model\.mm_projector\.4\.bias"),
                         ({"model.embed_tokens.weight": weight}, r"left over model\.embed_tokens\.weight")):
        with pytest.raises(UserError, match=word):
            read(**{**two, **change})
    with pytest.raises(UserError, match="holds no mm_projector"):
        read(**{"model.embed_tokens.weight": weight})


def test_sharded_pickles_are_one_mapping(tmp_path, params, tower):
    folder = written(tmp_path / "llava", {})
    (folder / "model.safetensors").unlink()
    state = original(params)
    names, weight_map = sorted(state), {}
    for k in range(2):
        file = f"pytorch_model-0000{k + 1}-of-00002.bin"
        torch.save(as_torch({name: state[name] for name in names[k::2]}), folder / file)
        weight_map |= dict.fromkeys(names[k::2], file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "training_args.bin").write_bytes(b"no tensors")
    torch.save(as_torch(projector_of(params)), folder / "mm_projector.bin")     # as published, beside the shards
    equal(load(folder, vision_tower=tower)[0], params)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match=r"lacks pytorch_model-00002-of-00002\.bin"):
        load(folder, vision_tower=tower)


def test_bfloat16_bits_are_kept(tmp_path):
    values = torch.randn(3, 5).to(torch.bfloat16)
    torch.save({"a": values, "b": values.T}, tmp_path / "x.bin")
    found = Pickles(tmp_path / "x.bin")
    assert found["a"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found["a"].astype(np.float32), values.float().numpy())
    np.testing.assert_array_equal(found["b"].astype(np.float32), values.T.float().numpy())


class Malicious:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (self.mark, "w")


@pytest.mark.parametrize("save", [
    lambda value, file: torch.save(value, file),
    lambda value, file: torch.save(value, file, _use_new_zipfile_serialization=False),
    lambda value, file: file.write_bytes(pickle.dumps(value, protocol=2))], ids=["zip", "legacy", "pickle"])
def test_code_is_refused_and_never_runs(tmp_path, params, tower, save):
    mark, control = tmp_path / "was-here", tmp_path / "control"
    pickle.loads(pickle.dumps(Malicious(str(control)))).close()
    assert control.exists(), "the code does run where it is let"
    value = {"model.mm_projector.4.weight": Malicious(str(mark)), **as_torch(projector_of(params))}
    save(value, tmp_path / "mm_projector.bin")
    with pytest.raises(UserError, match=r"refused, because opening it would run code \(\w*\.open\)"):
        from_hf.main([str(tmp_path / "mm_projector.bin"), "--out", str(tmp_path / "out")])
    folder = written(tmp_path / "llava", {})
    (folder / "model.safetensors").unlink()
    save(value, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="refused"):
        load(folder, vision_tower=tower)
    assert not mark.exists() and not (tmp_path / "out").exists()


def test_other_files_are_explained(tmp_path):
    file = tmp_path / "x.bin"
    for content in (b"", b"no tensors at all", b"PK\x03\x04 cut short"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="not a readable PyTorch file"):
            Pickles(file)
    for value in ([1, 2], {"a": 1}, {"state_dict": {"a": torch.ones(2)}}):
        torch.save(value, file)
        with pytest.raises(UserError, match="not a plain dictionary of tensors"):
            Pickles(file)


def saved(folder, config, params, dtype=np.float32):
    store.save_model(folder, config, jax.tree.map(lambda x: np.asarray(x, dtype), params))
    return str(folder)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_original_layout_goes_out_and_comes_back(tmp_path, params, tower, dtype):
    model = saved(tmp_path / "model", CONFIG, params, dtype)
    result = to_hf.main([model, "--out", str(tmp_path / "out"), "--format", "llava_original",
                         "--vision-tower", "./my-clip"])
    assert result["family"] == "llava_original" and any("./my-clip" in note for note in result["notes"])
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(original(params))
    hf = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: hf[key] for key in HF if key not in ("model_type", "rope_theta")} == {
        key: value for key, value in HF.items() if key not in ("model_type", "rope_theta")}
    found, config = load(tmp_path / "out", None, tower)
    assert config == CONFIG
    equal(found, jax.tree.map(lambda x: np.asarray(x, dtype), params))


def test_an_original_export_needs_a_tower_it_can_name(tmp_path, params):
    model = saved(tmp_path / "model", CONFIG, params)
    with pytest.raises(UserError, match=r"no published CLIP has the shape .*--vision-tower"):
        to_hf.main([model, "--out", str(tmp_path / "out"), "--format", "llava_original"])
    assert not list(tmp_path.glob("out*"))
    published = CONFIG.replace(vision=(dataclasses.replace(CLIP_L_336, name="eye"),), connector=ConnectorConfig())
    assert llava_original.config_to_hf(published)["mm_vision_tower"] == "openai/clip-vit-large-patch14-336"
    two = saved(tmp_path / "two", preset("nano"), random_params(preset("nano")))
    with pytest.raises(UserError, match=r"LLaVA has no place for the encoders clip, dinov2"):
        to_hf.main([two, "--out", str(tmp_path / "out"), "--format", "llava_original"])


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_connector_goes_out_as_mm_projector_and_comes_back(tmp_path, params, dtype):
    model = saved(tmp_path / "model", CONFIG, params, dtype)
    result = to_hf.main([model, "--out", str(tmp_path / "out"), "--part", "connector"])
    assert result["files"] == ["mm_projector.bin"]
    state = torch.load(tmp_path / "out" / "mm_projector.bin", weights_only=True)
    assert set(state) == {f"model.mm_projector.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    from_hf.main([str(tmp_path / "out" / "mm_projector.bin"), "--out", str(tmp_path / "back"), "--quiet"])
    back = store.load_params(tmp_path / "back")
    for path, value in flatten({"connector": params["connector"]}).items():
        np.testing.assert_array_equal(np.asarray(back[path]), np.asarray(value, dtype))
    # The same command replaces its own output, and nothing else.
    to_hf.main([model, "--out", str(tmp_path / "out"), "--part", "connector"])
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not an export"):
        to_hf.main([model, "--out", str(tmp_path / "out"), "--part", "connector"])
    for flags, said in ((("--lora", "adapter"), "no LoRA updates"), (("--format", "llava"), "is for a whole model")):
        with pytest.raises(UserError, match=said):
            to_hf.main([model, "--out", str(tmp_path / "other"), "--part", "connector", *flags])
    mixed = preset("nano")
    model = saved(tmp_path / "mixed", mixed, random_params(mixed))
    with pytest.raises(UserError, match="a plain MLP on each patch"):
        to_hf.main([model, "--out", str(tmp_path / "other"), "--part", "connector"])
