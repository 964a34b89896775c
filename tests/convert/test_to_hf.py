"""Exports load in transformers with nothing missing, compute the same, and come back bit by bit."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exports are read by transformers, which needs torch: pip install torch")
transformers = pytest.importorskip("transformers")

from convert import from_hf, to_hf  # noqa: E402
from convert.engine import abstract, prefix_of  # noqa: E402
from convert.folders import config_from_hf  # noqa: E402
from spatialllm_jax.errors import UserError  # noqa: E402
from spatialllm_jax.models import store  # noqa: E402
from spatialllm_jax.models.attention import self_mask  # noqa: E402
from spatialllm_jax.models.clip_text import CLIP  # noqa: E402
from spatialllm_jax.models.config import ConnectorConfig, LoRAConfig, RopeScaling  # noqa: E402
from spatialllm_jax.models.llama import Llama  # noqa: E402
from spatialllm_jax.models.presets import NANO_CLIP, NANO_DINOV2, NANO_LLAMA, clip_preset, preset  # noqa: E402
from spatialllm_jax.models.spatialllm import SpatialLLM  # noqa: E402
from tests.convert import test_parity as parity  # noqa: E402
from tests.convert.raw import raw_tensors  # noqa: E402

LLAVA = preset("nano_clip").replace(connector=ConnectorConfig(grid=2), llm=dataclasses.replace(
    NANO_LLAMA, tie_embeddings=False))
LLAMA31 = dataclasses.replace(NANO_LLAMA, tie_embeddings=False, rope_theta=500000.0,
                              rope_scaling=RopeScaling(original_max_positions=32))
CONFIGS = {
    "clip": dataclasses.replace(NANO_CLIP, activation="gelu_tanh"),
    "dinov2": dataclasses.replace(NANO_DINOV2, image_size=12),
    "dinov2_registers": dataclasses.replace(NANO_DINOV2, image_size=12, num_registers=2, swiglu=True, mlp_dim=64,
                                            antialias=True),
    "mae": dataclasses.replace(preset("nano_clip_mae").vision[1], pretrain_grid=4),
    "llama_tied": NANO_LLAMA,
    "llama_31": LLAMA31,
    "contrastive": clip_preset("nano"),
    "llava": LLAVA,
}


def weights(config, seed=0):
    """Parameters of a size at which every one of them changes the result."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (rng.normal(size=x.shape) / np.sqrt(x.shape[-2] if len(x.shape) > 1 else 9)).astype(
        np.float32), abstract(config))


def save(folder, config, params, dtype=np.float32):
    tree = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    for part in reversed(prefix_of(config).strip("/").split("/")):
        tree = {part: tree} if part else tree
    store.save_model(folder, config, tree)
    return folder


def export(tmp_path, *flags, model="model", out="out"):
    return to_hf.main([str(tmp_path / model), "--out", str(tmp_path / out), *flags])


def opened(folder, **kwargs):
    """The model by the class that its config.json names, in eval mode; every tensor must have found its place."""
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def assert_equal(got, expected):
    expected = np.asarray(expected)
    assert np.abs(expected).max() > 0.5, "too small to test anything"
    np.testing.assert_allclose(got.detach().numpy(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["clip", "dinov2", "dinov2_registers", "mae"])
def test_towers(family, tmp_path):
    config = CONFIGS[family]
    params = weights(config)
    save(tmp_path / "model", config, params)
    assert export(tmp_path)["family"] == config.kind
    model = opened(tmp_path / "out")
    _, x, tx = parity.pixels(config)
    extra = {"noise": torch.arange(config.grid**2).float().repeat(2, 1)} if family == "mae" else {}
    with torch.no_grad():
        states = model(tx, output_hidden_states=True, **extra).hidden_states
    expected = parity.states(config, params, x)
    assert len(states) == len(expected)
    for got, want in zip(states, expected, strict=True):
        assert_equal(got, want)
    picture = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(picture.image_mean, config.mean)


def llama_logits(config, params, tokens, lora=None):
    positions, mask = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape), self_mask(jnp.ones_like(tokens))

    def run(llm):
        return llm.logits(llm(llm.embed(tokens), positions, mask)[0])

    return np.asarray(jax.jit(lambda p: Llama(config, lora=lora).apply({"params": p}, method=run))(params))


@pytest.mark.parametrize("family", ["llama_tied", "llama_31"])
def test_decoders(family, tmp_path):
    config = CONFIGS[family]
    params = weights(config)
    save(tmp_path / "model", config, params)
    export(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 50))
    with torch.no_grad():
        got = opened(tmp_path / "out")(torch.tensor(tokens)).logits
    assert_equal(got, llama_logits(config, params, tokens))


def test_contrastive_clip(tmp_path):
    config = CONFIGS["contrastive"]
    params = weights(config)
    save(tmp_path / "model", config, params)
    export(tmp_path)
    images, _, tx = parity.pixels(config.vision)
    tokens, end = np.random.default_rng(1).integers(0, 60, (3, 12)), np.array([5, 11, 8])
    tokens[np.arange(3), end] = config.text.vocab_size - 1
    with torch.no_grad():
        got = opened(tmp_path / "out")(input_ids=torch.tensor(tokens), pixel_values=tx).logits_per_image
    image, text, scale = jax.jit(CLIP(config).apply)({"params": params}, images, tokens, end)
    assert_equal(got, scale * image @ text.T)


@pytest.mark.parametrize("family", CONFIGS)
def test_configs_come_back(family, tmp_path):
    """From our config.json, and from what transformers makes of it."""
    config = CONFIGS[family]
    save(tmp_path / "model", config, weights(config))
    export(tmp_path, *(["--image-token-id", "63"] if family == "llava" else []))
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    read = transformers.AutoConfig.from_pretrained(tmp_path / "out").to_dict()
    for hf in (stored, read):
        assert config_from_hf(hf) == config


HF_MODELS = {
    "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**parity.VISION, intermediate_size=64)),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**parity.VISION)),
    "dinov2_registers": lambda: transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(
        **parity.VISION, use_swiglu_ffn=True)),
    "mae": lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig(**parity.VISION, intermediate_size=64)),
    "llama": lambda: transformers.LlamaForCausalLM(parity.llama_config()),
    "llama_tied": lambda: transformers.LlamaForCausalLM(parity.llama_config(tie_word_embeddings=True)),
    "contrastive": parity.clip_model,
    "llava": lambda: transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**parity.VISION, intermediate_size=64),
        text_config=parity.llama_config(), image_token_index=63)),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", HF_MODELS)
def test_there_here_and_back_bit_by_bit(family, dtype, tmp_path):
    """transformers' files -> model folder -> files: names, types and bytes. DINOv2's mask token, which plays no part
    outside its own pre-training, is not kept and comes back as zeros."""
    parity.randomised(HF_MODELS[family]()).to(getattr(torch, dtype)).save_pretrained(tmp_path / "theirs")
    from_hf.main([str(tmp_path / "theirs"), "--out", str(tmp_path / "model"), "--dtype", dtype])
    result = export(tmp_path, *(["--image-token-id", "63"] if family == "llava" else []))
    assert result["dtype"] == dtype
    theirs, back = raw_tensors(tmp_path / "theirs"), raw_tensors(tmp_path / "out")
    if transformers.__version__ >= "5" and family in ("clip", "llava"):
        # transformers 5 reads the hub's names of a tower but does not write them.
        back = {name.replace("vision_model.", ""): value for name, value in back.items()}
    assert theirs.keys() == back.keys()
    for name, value in theirs.items():
        if name.endswith("mask_token"):
            assert back[name] == (*value[:2], bytes(len(value[2])))
        else:
            assert back[name] == value, name


def test_shards_are_as_transformers_writes_them(tmp_path):
    params = weights(LLAVA)
    save(tmp_path / "model", LLAVA, params)
    whole = export(tmp_path, out="whole")
    result = export(tmp_path, "--shard-size", "8KB")
    assert len(whole["files"]) == 1 and len(result["files"]) > 3
    count = len(result["files"])
    assert result["files"][0] == f"model-00001-of-{count:05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(result["files"])
    assert raw_tensors(tmp_path / "out") == raw_tensors(tmp_path / "whole")
    assert index["metadata"]["total_size"] == sum(len(raw[2]) for raw in raw_tensors(tmp_path / "out").values())
    for a, b in zip(opened(tmp_path / "out").state_dict().values(), opened(tmp_path / "whole").state_dict().values(),
                    strict=True):
        assert torch.equal(a, b)
    from_hf.main([str(tmp_path / "out"), "--out", str(tmp_path / "again")])
    # A smaller export over a larger one leaves none of its shards behind.
    assert export(tmp_path)["files"] == ["model.safetensors"]
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()


def test_parts_and_types(tmp_path):
    config = preset("nano")
    params = jax.tree.map(np.asarray, weights(config))
    save(tmp_path / "model", config, params)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 20))
    export(tmp_path, "--part", "llm", "--dtype", "bfloat16", out="llm")
    model = opened(tmp_path / "llm", dtype="auto")
    assert model.dtype == torch.bfloat16
    rounded = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16).astype(jnp.float32), params["llm"])
    with torch.no_grad():
        assert_equal(model.float()(torch.tensor(tokens)).logits, llama_logits(config.llm, rounded, tokens))
    assert export(tmp_path, "--part", "vision/dinov2", out="eye")["family"] == "dinov2"
    assert isinstance(opened(tmp_path / "eye"), transformers.Dinov2Model)


def adapted(config, lora, params, seed=5):
    """`params` of one part with a random LoRA pair on every targeted linear."""
    def walk(node, path, layer_axes):
        if "kernel" in node and layer_axes and re.search(lora.targets, path):
            depth, inputs, outputs = node["kernel"].shape
            return {**node, "lora_a": rng.normal(size=(depth, inputs, lora.rank)).astype(np.float32) / 4,
                    "lora_b": rng.normal(size=(depth, lora.rank, outputs)).astype(np.float32) / 4}
        return {key: walk(value, f"{path}/{key}", layer_axes or key in ("layers", "blocks"))
                if isinstance(value, dict) else value for key, value in node.items()}

    rng = np.random.default_rng(seed)
    return walk(params, "", False)


@pytest.mark.parametrize("part", ["llm", "vision/clip"])
def test_adapter_on_its_base_is_our_forward_with_lora(part, tmp_path):
    """W + (alpha / r) B A by hand, under peft's names."""
    lora = LoRAConfig(2, 6.0, targets=r"attention/(query|value)$|mlp/(up|down)$")
    config = preset("nano").replace(vision_lora=lora, llm_lora=lora)
    plain = weights(preset("nano"))
    params = {**plain, "llm": adapted(config, lora, plain["llm"]),
              "vision": {name: adapted(config, lora, tower) for name, tower in plain["vision"].items()}}
    store.save_model(tmp_path / "model", config, params)
    export(tmp_path, "--part", part, "--lora", "drop", out="base")
    export(tmp_path, "--part", part, "--lora", "adapter", "--base", str(tmp_path / "base"), out="adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (2, 6.0, "LORA")
    names = {"llm": ["down_proj", "q_proj", "up_proj", "v_proj"], "vision/clip": ["fc1", "fc2", "q_proj", "v_proj"]}
    assert settings["target_modules"] == names[part]
    (file,) = (tmp_path / "adapter").glob("*.safetensors")
    assert file.name == "adapter_model.safetensors"
    from safetensors.torch import load_file
    pairs = load_file(file)
    if part == "llm":
        assert "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight" in pairs
    model = opened(tmp_path / "base")
    modules = dict(model.named_modules())
    for name, a in pairs.items():
        owner = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        if owner in modules:
            with torch.no_grad():
                modules[owner].weight += 3.0 * pairs[name.replace("lora_A", "lora_B")] @ a
    tokens = np.random.default_rng(0).integers(0, 64, (2, 20))
    if part == "llm":
        with torch.no_grad():
            assert_equal(model(torch.tensor(tokens)).logits, llama_logits(config.llm, params["llm"], tokens, lora))
        export(tmp_path, "--part", part, out="merged")
        with torch.no_grad():
            torch.testing.assert_close(opened(tmp_path / "merged")(torch.tensor(tokens)).logits,
                                       model(torch.tensor(tokens)).logits, atol=1e-4, rtol=1e-4)
        return
    images, _, tx = parity.pixels(config.vision[0])
    with torch.no_grad():
        got = model(tx, output_hidden_states=True).hidden_states[-2][:, 1:]
    # The nano connector's grid is twice CLIP's: compare where neither resamples.
    alone = config.replace(vision=config.vision[:1], connector=ConnectorConfig(grid=2))
    encode = jax.jit(lambda p: SpatialLLM(alone).apply({"params": p}, images, method="encode_images"))
    assert_equal(got, encode({**params, "vision": {"clip": params["vision"]["clip"]}}))


def test_mistakes_are_one_sentence_and_leave_nothing(tmp_path):
    save(tmp_path / "model", preset("nano"), weights(preset("nano")))
    save(tmp_path / "llm", NANO_LLAMA, weights(NANO_LLAMA))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    partial = preset("nano")
    store.save_model(tmp_path / "partial", partial, {"llm": weights(NANO_LLAMA)})
    lora = LoRAConfig(2, 6.0)
    pairs = adapted(None, lora, weights(NANO_LLAMA))
    store.save_model(tmp_path / "stray", NANO_LLAMA, {"llm": pairs})
    odd = dataclasses.replace(NANO_DINOV2, mlp_dim=100)
    save(tmp_path / "odd", odd, weights(odd))
    before = sorted(path.name for path in tmp_path.iterdir())
    for flags, words in (
            (["absent"], "not a model folder"),
            (["other"], "not a model folder"),
            (["model", "--part", "vision/clap"], r"no such part; choose one of vision/clip, vision/dinov2, llm"),
            (["model", "--format", "llava"], "this model has the encoders clip, dinov2"),
            (["llm", "--format", "llava"], "for a whole model"),
            (["model", "--shard-size", "big"], "--shard-size 'big'"),
            (["model", "--pad-vocab", "0"], "--pad-vocab 0"),
            (["model", "--lora", "adapter"], "for one part"),
            (["model", "--part", "llm", "--lora", "adapter"], "no LoRA updates"),
            (["model", "--part", "vision/dinov2", "--lora", "adapter"], "not for a dinov2 encoder"),
            (["partial"], "export one part with --part"),
            (["partial", "--part", "vision/clip"], "holds no parameters"),
            (["stray"], "LoRA update, but config.json has no LoRA"),
            (["odd"], "mlp_dim 100"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            to_hf.main([str(tmp_path / flags[0]), "--out", str(tmp_path / "out"), *flags[1:]])
        assert "\n" not in str(caught.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    with pytest.raises(UserError, match="is not an export"):
        to_hf.main([str(tmp_path / "model"), "--out", str(tmp_path / "other")])
    with pytest.raises(UserError, match="is not an export"):
        to_hf.main([str(tmp_path / "model"), "--out", str(tmp_path / "llm")])
    assert (tmp_path / "other" / "thesis.tex").read_text() == "years of work"


def test_a_failure_midway_keeps_the_old_export(tmp_path, monkeypatch):
    save(tmp_path / "model", NANO_LLAMA, weights(NANO_LLAMA))
    export(tmp_path)
    before = raw_tensors(tmp_path / "out")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convert.export.TensorWriter.write", full)
    with pytest.raises(OSError, match="No space"):
        export(tmp_path)
    assert raw_tensors(tmp_path / "out") == before and not (tmp_path / "out.partial").exists()
