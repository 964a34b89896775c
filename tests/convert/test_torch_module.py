"""Whole models of any shape in PyTorch, loaded as a user loads them: the same logits and the same greedy tokens."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch: pip install torch")
transformers = pytest.importorskip("transformers")

from convert import from_hf, to_hf  # noqa: E402
from convert.engine import family_of  # noqa: E402
from convert.folders import load  # noqa: E402
from spatialllm_jax.data import images  # noqa: E402
from spatialllm_jax.inference import schedule  # noqa: E402
from spatialllm_jax.models import store  # noqa: E402
from spatialllm_jax.models.config import LoRAConfig, VisionConfig  # noqa: E402
from spatialllm_jax.models.presets import preset  # noqa: E402
from spatialllm_jax.models.spatialllm import SpatialLLM  # noqa: E402
from tests.conftest import random_params  # noqa: E402
from tests.convert.raw import raw_tensors  # noqa: E402

TOLERANCE = 1e-4
NANO = preset("nano")
WITH_REGISTERS = VisionConfig("eye", "dinov2", 20, 4, 24, 2, 2, 64, num_registers=2, swiglu=True, pretrain_grid=8,
                              antialias=True, feature_layer=-1, feature_norm=True)


def changed(name="nano", vision=None, llm=None, lora=None, **connector):
    config = preset(name)
    return config.replace(
        vision=vision or config.vision, connector=dataclasses.replace(config.connector, **connector),
        llm=dataclasses.replace(config.llm, **(llm or {})), vision_lora=lora, llm_lora=lora)


CONFIGS = {
    "nano": NANO,
    "nano_clip": preset("nano_clip"),
    "nano_clip_mae": preset("nano_clip_mae"),
    "untied": changed(llm={"tie_embeddings": False, "vocab_size": 70}),
    "interleave": changed(mix="interleave", merge=1),
    "sum": changed(mix="sum", hidden=24, layers=3),
    "layer_norm": changed(norm="layer", layers=1, merge=4),
    "mae_at_another_size": changed("nano_clip_mae", mix="sum", vision=tuple(
        dataclasses.replace(v, image_size=24, pretrain_grid=v.grid, feature_layer=1, feature_norm=True)
        for v in preset("nano_clip_mae").vision)),
    "registers": changed(vision=(WITH_REGISTERS, NANO.vision[0])),
}


@pytest.fixture(autouse=True)
def own_module_cache(monkeypatch, tmp_path):
    """transformers copies a folder's module into a cache before it runs it."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def exported(tmp_path, config, *flags, dtype=np.float32, params=None):
    params = random_params(config) if params is None else params
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    store.save_model(tmp_path / "model", config, params)
    result = to_hf.main([str(tmp_path / "model"), "--out", str(tmp_path / "out"), *flags])
    return params, tmp_path / "out", result


def opened(folder, **kwargs):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, **kwargs)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def prompts(config, image_id, rows=2, before=3, after=7, seed=0):
    """Token ids with one picture a row, for us (0 in the picture's places) and for PyTorch; and the places."""
    count = config.connector.num_tokens
    tokens = np.random.default_rng(seed).integers(1, 60, (rows, before + count + after)).astype(np.int32)
    places = np.arange(tokens.shape[1]) - before
    index = np.broadcast_to(np.where((places >= 0) & (places < count), places, -1), tokens.shape).astype(np.int32)
    return np.where(index >= 0, 0, tokens), torch.tensor(np.where(index >= 0, image_id, tokens)).long(), index


def ours(config, params, tokens, index, pixels):
    """(logits, visual tokens) of our model."""
    ones, positions = np.ones_like(tokens), np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)

    def run(model):
        features = model.encode_images(pixels)[:, None]
        hidden = model(tokens, positions, ones, 0 * ones, index, features=features)
        return model.logits(hidden), model.visual_tokens(features=features)

    logits, visual = jax.jit(lambda p: SpatialLLM(config).apply({"params": p}, method=run))(params)
    return np.asarray(logits), visual


def pictures(rows=2, size=18, seed=3):
    return np.random.default_rng(seed).integers(0, 256, (rows, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_greedy_tokens(name, tmp_path):
    config = CONFIGS[name]
    params, folder, result = exported(tmp_path, config)
    assert result["family"] == family_of(config) == "spatialllm"
    model = opened(folder)
    tokens, ids, index = prompts(config, result["image_token_id"])
    pixels = pictures()
    expected, visual = ours(config, params, tokens, index, pixels)
    with torch.no_grad():
        got = model(input_ids=ids, pixel_values=torch.tensor(pixels), attention_mask=torch.ones_like(ids)).logits
    assert expected.std() > 0.1
    np.testing.assert_allclose(got.numpy(), expected, atol=TOLERANCE, rtol=TOLERANCE)
    if config.llm == NANO.llm and name != "nano":
        return      # another encoder or connector, whose tokens are compared: the same language model reads them
    with torch.no_grad():
        written = model.generate(input_ids=ids, pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2), do_sample=False,
                                 attention_mask=torch.ones_like(ids), max_new_tokens=8, pad_token_id=0)
    lengths = np.full(len(tokens), tokens.shape[1], np.int32)
    greedy = schedule.generate(SpatialLLM(config), params, tokens, lengths, index, visual,
                               max_new_tokens=8, stop=())
    np.testing.assert_array_equal(written[:, ids.shape[1]:].numpy(), np.asarray(greedy))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_folder_comes_back_bit_by_bit(dtype, tmp_path):
    config = CONFIGS["registers"]
    params, folder, result = exported(tmp_path, config, dtype=dtype)
    again, config_again = load(folder, dtype)
    assert config_again == config and result["dtype"] == np.dtype(dtype).name
    jax.tree.map(np.testing.assert_array_equal, again, jax.tree.map(np.asarray, params))
    from_hf.main([str(folder), "--out", str(tmp_path / "again"), "--dtype", np.dtype(dtype).name])
    to_hf.main([str(tmp_path / "again"), "--out", str(tmp_path / "out2")])
    assert raw_tensors(tmp_path / "out2") == raw_tensors(folder)
    assert json.loads((tmp_path / "out2" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text())


def test_merged_lora_is_our_forward_with_lora(tmp_path):
    config = changed(lora=LoRAConfig(2, 6.0))
    params, folder, result = exported(tmp_path, config)
    assert any("merged" in note for note in result["notes"])
    tokens, ids, index = prompts(config, result["image_token_id"])
    expected, _ = ours(config, params, tokens, index, pictures())
    with torch.no_grad():
        got = opened(folder)(input_ids=ids, pixel_values=torch.tensor(pictures())).logits.numpy()
    np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=TOLERANCE)
    to_hf.main([str(tmp_path / "model"), "--out", str(folder), "--lora", "drop"])
    with torch.no_grad():
        base = opened(folder)(input_ids=ids, pixel_values=torch.tensor(pictures())).logits.numpy()
    assert np.abs(base - expected).max() > 0.01


def test_labels_several_pictures_and_what_is_refused(tmp_path):
    config = CONFIGS["interleave"]
    _, folder, result = exported(tmp_path, config)
    model = opened(folder)
    _, ids, _ = prompts(config, result["image_token_id"], rows=1, after=5)
    twice = torch.cat([ids, ids], 1)
    pixels = torch.tensor(pictures())
    with torch.no_grad():
        out = model(input_ids=twice, pixel_values=pixels, labels=twice)
        logp = torch.log_softmax(out.logits[:, :-1], -1)
        targets, seen = twice[:, 1:], twice[:, 1:] != result["image_token_id"]
        mean = -logp.gather(-1, targets.masked_fill(~seen, 0)[..., None])[..., 0][seen].mean()
        floats = model(input_ids=twice, pixel_values=pixels / 255).logits
        ready = {entry["name"]: model._normalized(pixels, entry) for entry in model.config.vision}
        normalised = model(input_ids=twice, pixel_values=ready).logits
    torch.testing.assert_close(out.loss, mean)
    torch.testing.assert_close(floats, out.logits)
    torch.testing.assert_close(normalised, out.logits)
    for pixel_values in (None, pixels[:1]):
        with pytest.raises(ValueError, match="image tokens"):
            model(input_ids=twice, pixel_values=pixel_values)


@pytest.mark.parametrize("resize", images.RESIZES)
def test_pictures_are_squared_as_in_training(resize, tmp_path):
    from PIL import Image

    settings = {"template": "compact", "system": "look", "image_size": 16, "resize": resize}
    store.save_model(tmp_path / "model", NANO, random_params(NANO))
    (tmp_path / "model" / "chat.json").write_text(json.dumps(settings))
    to_hf.main([str(tmp_path / "model"), "--out", str(tmp_path / "out")])
    model = opened(tmp_path / "out")
    rng = np.random.default_rng(0)
    shapes = [(20, 31, 3), (31, 20, 3), (16, 16, 3), (24, 24, 3)]
    arrays = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    got = model.pixels([Image.fromarray(array) for array in arrays]).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(got, np.stack([images.resize(array, 16, resize)[0] for array in arrays]))
