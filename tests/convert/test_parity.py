"""Against transformers on random weights: every hidden state within 1e-4, through the real conversion."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs torch: pip install torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import save_file  # noqa: E402

from convert.engine import family_of, to_jax  # noqa: E402
from convert.export import to_torch  # noqa: E402
from convert.folders import config_from_hf, load  # noqa: E402
from spatialllm_jax.models.attention import self_mask  # noqa: E402
from spatialllm_jax.models.clip_text import CLIP, TextTower  # noqa: E402
from spatialllm_jax.models.llama import Llama  # noqa: E402
from spatialllm_jax.models.spatialllm import SpatialLLM  # noqa: E402
from spatialllm_jax.models.tensor_file import TensorFiles  # noqa: E402
from spatialllm_jax.models.vit import ViT, normalize  # noqa: E402

TOLERANCE = 1e-4
VISION = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=24, patch_size=4)


def randomised(model, seed=0):
    """Weights of a size that keeps states of order one, so that 1e-4 means something; none left at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim >= 2 and "embedding" not in name and "token" not in name:
                p.copy_(noise / np.sqrt(p[0].numel()))
            else:
                p.copy_(p + 0.3 * noise)
    return model.eval()


def converted(model):
    """(params, config) by way of the names in memory (transformers 5's spelling)."""
    config = config_from_hf(model.config.to_dict())
    state = {name: t.detach().numpy() for name, t in model.state_dict().items()}
    return to_jax(state, family_of(config), config), config


def assert_states(ours, theirs):
    assert len(ours) == len(theirs)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        b = b.detach().numpy()
        assert np.abs(b).max() > 0.5, "the oracle's state is too small to test anything"
        np.testing.assert_allclose(np.asarray(a), b, atol=TOLERANCE, rtol=TOLERANCE, err_msg=f"state {i}")


def pixels(config, count=2, size=None, seed=0):
    size = size or config.image_size
    images = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    x = normalize(jnp.asarray(images), dataclasses.replace(config, image_size=size))
    return images, x, torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy())


def states(config, params, x, output="states"):
    return jax.jit(lambda params, x: ViT(config).apply({"params": params}, x, output))(params, x)


def clip_model(**vision):
    text = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=16, eos_token_id=63, bos_token_id=62, pad_token_id=1)
    return randomised(transformers.CLIPModel(transformers.CLIPConfig(
        text_config=text, vision_config={**VISION, "intermediate_size": 64, **vision}, projection_dim=24)))


def llama_config(**changes):
    return transformers.LlamaConfig(**{**dict(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5), **changes})


def test_clip_vision_states_features_and_pooled():
    model = randomised(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION, intermediate_size=64)))
    params, config = converted(model)
    _, x, tx = pixels(config)
    with torch.no_grad():
        out = model(tx, output_hidden_states=True)
    assert_states(states(config, params, x), out.hidden_states)
    assert_states([states(config, params, x, "features")], [out.hidden_states[-2][:, 1:]])
    assert_states([states(config, params, x, "pooled")], [out.pooler_output])


def test_clip_at_another_resolution():
    model = randomised(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION, intermediate_size=64)))
    params, config = converted(model)
    _, x, tx = pixels(config, size=36)
    with torch.no_grad():
        out = model(tx, output_hidden_states=True, interpolate_pos_encoding=True)
    assert_states(states(config, params, x), out.hidden_states)


def test_clip_contrastive_text_states_and_logits():
    model = clip_model()
    params, config = converted(model)
    images, _, tx = pixels(config.vision)
    tokens = np.random.default_rng(1).integers(2, 62, (3, 12))
    end = np.array([5, 11, 8])
    for row, e in zip(tokens, end, strict=True):
        row[e:] = [63] + [1] * (11 - e)
    with torch.no_grad():
        out = model(input_ids=torch.tensor(tokens), pixel_values=tx)
        text = model.text_model(torch.tensor(tokens), output_hidden_states=True)
    ours = jax.jit(lambda p: TextTower(config.text).apply({"params": p}, tokens, end, True))(params["text"])
    assert_states(ours, text.hidden_states)
    image, words, scale = jax.jit(CLIP(config).apply)({"params": params}, images, tokens, end)
    np.testing.assert_allclose(scale * image @ words.T, out.logits_per_image.numpy(), atol=1e-4, rtol=1e-4)
    # The tower alone, out of the same checkpoint, is the contrastive model's very subtree.
    tower = to_jax({k: t.detach().numpy() for k, t in model.state_dict().items()}, "clip", config.vision)
    jax.tree.map(np.testing.assert_array_equal, tower, params["vision"]["clip"])


@pytest.mark.parametrize(("swiglu", "size"), [(False, 24), (False, 12), (False, 40), (True, 24)])
def test_dinov2(swiglu, size):
    model = randomised(transformers.Dinov2Model(transformers.Dinov2Config(
        **VISION, mlp_ratio=2, use_swiglu_ffn=swiglu)))
    params, config = converted(model)
    assert config.swiglu is swiglu
    _, x, tx = pixels(config, size=size)
    with torch.no_grad():
        out = model(tx, output_hidden_states=True)
    assert_states(states(config, params, x), out.hidden_states)
    if size == config.image_size:
        final = dataclasses.replace(config, feature_layer=-1, feature_norm=True)
        assert_states([states(final, params, x, "features")], [out.last_hidden_state[:, 1:]])


@pytest.mark.parametrize("size", [24, 12])
def test_dinov2_with_registers(size):
    model = randomised(transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(
        **VISION, mlp_ratio=2, num_register_tokens=3)))
    params, config = converted(model)
    _, x, tx = pixels(config, size=size)
    with torch.no_grad():
        out = model(tx, output_hidden_states=True)
    assert_states(states(config, params, x), out.hidden_states)
    assert_states([states(config, params, x, "features")], [out.hidden_states[-2][:, 4:]])


def test_mae():
    model = randomised(transformers.ViTMAEModel(transformers.ViTMAEConfig(
        **VISION, intermediate_size=64, mask_ratio=0.0)))
    params, config = converted(model)
    _, x, tx = pixels(config)
    # The oracle shuffles its patches by `noise` even when it masks none; a rising noise keeps their order.
    noise = torch.arange(config.grid**2, dtype=torch.float32).repeat(2, 1)
    with torch.no_grad():
        out = model(tx, noise=noise, output_hidden_states=True)
    assert_states(states(config, params, x), out.hidden_states)


def test_mae_s_encoder_comes_out_of_the_pre_training_class(tmp_path):
    model = randomised(transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(
        **VISION, intermediate_size=64, decoder_hidden_size=16, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, decoder_intermediate_size=16)))
    model.save_pretrained(tmp_path)
    params, config = load(tmp_path)
    alone = to_jax({name: t.detach().numpy() for name, t in model.vit.state_dict().items()}, "mae", config)
    jax.tree.map(np.testing.assert_array_equal, params, alone)


LLAMA31 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=32)


@pytest.mark.parametrize("changes", [
    dict(num_key_value_heads=4), dict(num_key_value_heads=1, tie_word_embeddings=True),
    dict(head_dim=16, rope_parameters=LLAMA31)], ids=["mha", "gqa-tied", "llama-3.1"])
def test_llama_states_and_logits(changes):
    model = randomised(transformers.LlamaForCausalLM(llama_config(**changes)))
    params, config = converted(model)
    assert config.tie_embeddings == bool(changes.get("tie_word_embeddings"))
    assert (config.rope_scaling is not None) == ("rope_parameters" in changes)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 50))
    with torch.no_grad():
        out = model(torch.tensor(tokens), output_hidden_states=True)
    positions, mask = np.broadcast_to(np.arange(50), (2, 50)), self_mask(jnp.ones((2, 50), jnp.int32))

    def run(llm, tokens):
        embedded = llm.embed(tokens)
        hidden, _ = llm(embedded, positions, mask)
        return hidden, llm.logits(hidden)

    def every(llm, tokens):
        return llm(llm.embed(tokens), positions, mask, states=True)[0]

    hidden, logits = jax.jit(lambda p: Llama(config).apply({"params": p}, tokens, method=run))(params)
    inner = jax.jit(lambda p: Llama(config).apply({"params": p}, tokens, method=every))(params)
    # transformers' last state is the normed one.
    assert_states([*inner[:-1], hidden], out.hidden_states)
    assert_states([logits], [out.logits])

    # Greedy tokens, ours recomputed from scratch at every step.
    model.generation_config.eos_token_id = None
    theirs = model.generate(torch.tensor(tokens[:, :40]), attention_mask=torch.ones(2, 40, dtype=torch.long),
                            max_new_tokens=10, do_sample=False, pad_token_id=0).numpy()
    ours, step = tokens.copy(), jax.jit(lambda t: Llama(config).apply({"params": params}, t, method=run)[1])
    for at in range(40, 50):
        ours[:, at] = np.asarray(step(jnp.asarray(ours)))[:, at - 1].argmax(-1)
    np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def llava():
    vision = transformers.CLIPVisionConfig(**VISION, intermediate_size=64)
    return randomised(transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(
        vision_config=vision, text_config=llama_config(), image_token_index=63)))


def test_llava_logits(llava):
    params, config = converted(llava)
    images, _, tx = pixels(config.vision[0])
    tokens = np.random.default_rng(0).integers(0, 60, (2, 45))
    tokens[:, 3:39] = 63
    with torch.no_grad():
        expected = llava(input_ids=torch.tensor(tokens), pixel_values=tx).logits
    index = np.where(tokens == 63, np.arange(45) - 3, -1)
    one, positions = np.ones_like(tokens), np.broadcast_to(np.arange(45), (2, 45))

    def logits(model):
        return model.logits(model(tokens, positions, one, 0 * one, index, images=images[:, None]))

    ours = jax.jit(lambda p: SpatialLLM(config).apply({"params": p}, method=logits))(params)
    assert_states([ours], [expected])


@pytest.mark.parametrize("build", [
    clip_model,
    lambda: randomised(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION, intermediate_size=64))),
    lambda: randomised(transformers.Dinov2Model(transformers.Dinov2Config(**VISION, use_swiglu_ffn=True))),
    lambda: randomised(transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**VISION))),
    lambda: randomised(transformers.ViTMAEModel(transformers.ViTMAEConfig(**VISION, intermediate_size=64))),
    lambda: randomised(transformers.LlamaForCausalLM(llama_config())),
    lambda: randomised(transformers.LlamaForCausalLM(llama_config(tie_word_embeddings=True))),
    "llava",
], ids=["contrastive", "clip", "dinov2-swiglu", "dinov2-registers", "mae", "llama", "llama-tied", "llava"])
def test_files_load_in_both_spellings_and_come_back(build, tmp_path, request):
    model = request.getfixturevalue(build) if isinstance(build, str) else build()
    model.save_pretrained(tmp_path)
    params, config = load(tmp_path)
    in_memory, _ = converted(model)
    jax.tree.map(np.testing.assert_array_equal, params, in_memory)
    stored = TensorFiles(tmp_path)
    back = to_torch(params, family_of(config), config)
    # A tower's "vision_model." is in the hub's files and transformers 4's, and read but not written by 5.
    tower = set(stored) & {"embeddings.class_embedding", "vision_tower.embeddings.class_embedding"}
    renamed = {name.replace("vision_model.", "") if tower else name: value for name, value in back.items()}
    assert set(renamed) == set(stored)
    for name, value in renamed.items():
        # DINOv2's mask token means nothing here; it goes out as zeros.
        expected = np.zeros_like(stored[name]) if name.endswith("mask_token") else stored[name]
        np.testing.assert_array_equal(value, expected, err_msg=name)


def test_exported_state_loads_in_transformers(llava, tmp_path):
    """What we write is what transformers reads: no tensor missing, none unexpected, all equal."""
    params, config = converted(llava)
    save_file(to_torch(params, "llava", config), tmp_path / "model.safetensors", metadata={"format": "pt"})
    llava.config.save_pretrained(tmp_path)
    fresh, info = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, llava.state_dict()[name]), name


def test_original_llava_names_load_and_unknown_tensors_are_refused(llava):
    """The original repository's layout, with the self-trained vision tower that its own loader ignores."""
    from spatialllm_jax.errors import UserError
    params, config = converted(llava)
    original = {}
    for name, value in to_torch(params, "llava", config).items():
        name = name.replace("vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model.")
        name = name.replace("multi_modal_projector.linear_1", "model.mm_projector.0")
        name = name.replace("multi_modal_projector.linear_2", "model.mm_projector.2")
        original[name.removeprefix("language_model.")] = value
    again = to_jax(original, "llava", config)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    with pytest.raises(UserError, match=r"left over image_newline"):
        to_jax({**original, "image_newline": np.zeros(32)}, "llava", config)
