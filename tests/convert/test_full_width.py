"""Every family at its published width with few layers, against transformers: rounding grows with width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs torch: pip install torch")
transformers = pytest.importorskip("transformers")

from convert.verify import verify  # noqa: E402
from spatialllm_jax.models import presets  # noqa: E402
from spatialllm_jax.models.config import LlamaConfig, VisionConfig  # noqa: E402
from tests.convert.test_parity import pixels, randomised, states  # noqa: E402

CLIP = dict(num_hidden_layers=2, hidden_act="quick_gelu")
DINO = dict(num_hidden_layers=2, image_size=518, patch_size=14)
TEXT = dict(vocab_size=512, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
LLAMA = dict(vocab_size=512, num_hidden_layers=1, max_position_embeddings=8192, rms_norm_eps=1e-5)
LLAMA31 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=8192)


def clip(patch, size, width, heads):
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_attention_heads=heads, image_size=size, patch_size=patch,
        **CLIP))


def dino(width, heads, swiglu=False, registers=False):
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(
        hidden_size=width, num_attention_heads=heads, use_swiglu_ffn=swiglu, **DINO))


def llama(width, heads, kv, mlp, **more):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=width, num_attention_heads=heads, num_key_value_heads=kv, intermediate_size=mlp,
        **{**LLAMA, **more}))


def mae(width, heads, size=224):
    return transformers.ViTMAEModel(transformers.ViTMAEConfig(
        hidden_size=width, intermediate_size=4 * width, num_attention_heads=heads, num_hidden_layers=2,
        image_size=size, mask_ratio=0.0))


def llava():
    return transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_attention_heads=16,
                                                    image_size=336, patch_size=14, **CLIP),
        text_config=transformers.LlamaConfig(hidden_size=1024, num_attention_heads=8, num_key_value_heads=2,
                                             intermediate_size=2048, **LLAMA), image_token_index=511))


slow = pytest.mark.slow
FAMILIES = {
    "clip-b32": lambda: clip(32, 224, 768, 12), "clip-b16": lambda: clip(16, 224, 768, 12),
    "clip-l14": lambda: clip(14, 224, 1024, 16), "clip-l14-336": lambda: clip(14, 336, 1024, 16),
    "dinov2-s": lambda: dino(384, 6), "dinov2-b-registers": lambda: dino(768, 12, registers=True),
    "dinov2-l": lambda: dino(1024, 16), "dinov2-giant": lambda: dino(1536, 24, swiglu=True),
    "mae-b": lambda: mae(768, 12), "mae-l": lambda: mae(1024, 16), "llava": llava,
    "smollm2-135m": lambda: llama(576, 9, 3, 1536, tie_word_embeddings=True),
    "llama-3.2-1b": lambda: llama(2048, 32, 8, 8192, head_dim=64, tie_word_embeddings=True,
                                  rope_parameters={**LLAMA31, "factor": 32.0}),
    "vicuna-7b": lambda: llama(4096, 32, 32, 11008), "vicuna-13b": lambda: llama(5120, 40, 40, 13824),
    "llama-3.1-8b": lambda: llama(4096, 32, 8, 14336, rope_parameters=LLAMA31)}
LARGE = ("dinov2-l", "dinov2-giant", "llava", "vicuna-7b", "vicuna-13b", "llama-3.1-8b", "llama-3.2-1b")


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow) if name in LARGE else name for name in FAMILIES])
def test_parity_at_full_width(name, tmp_path):
    randomised(FAMILIES[name]()).save_pretrained(tmp_path)
    differences = verify(tmp_path)
    assert len(differences) >= (1 if name == "llava" else 2)
    assert not [f"{d.name}: {d.largest:.1e}" for d in differences if not d.passed]


def test_presets_are_the_published_shapes():
    """The families above at the widths that the presets name."""
    def shape(config):
        if isinstance(config, LlamaConfig):
            return config.width, config.num_heads, config.num_kv_heads, config.mlp_dim
        assert isinstance(config, VisionConfig)
        return config.width, config.num_heads, config.patch_size

    assert shape(presets.CLIP_L_336) == (1024, 16, 14) and presets.CLIP_L_336.image_size == 336
    assert shape(presets.DINOV2_L_336) == (1024, 16, 14) and presets.DINOV2_L_336.position_grid == 37
    assert shape(presets.MAE_L) == (1024, 16, 16)
    assert shape(presets.VICUNA_7B) == (4096, 32, 32, 11008)
    assert shape(presets.VICUNA_13B) == (5120, 40, 40, 13824)
    assert shape(presets.LLAMA3_8B) == shape(presets.LLAMA31_8B) == (4096, 32, 8, 14336)


@pytest.mark.parametrize("size", [224, 384])
def test_mae_at_both_resolutions(size):
    """At 384 the fixed positions are interpolated, as transformers does on request."""
    from tests.convert.test_parity import converted

    model = randomised(mae(1024, 16))
    params, config = converted(model)
    _, x, tx = pixels(config, count=1, size=size)
    noise = torch.arange((size // 16) ** 2, dtype=torch.float32)[None]
    with torch.no_grad():
        theirs = model(tx, noise=noise, output_hidden_states=True, interpolate_pos_encoding=size != 224)
    ours = states(config, params, x)
    for layer, (a, b) in enumerate(zip(np.asarray(ours), theirs.hidden_states, strict=True)):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-4, rtol=1e-4, err_msg=f"state {layer}")


def test_dinov2_large_at_336_from_positions_of_518():
    """The paper's encoder: 37 x 37 stored positions on 24 x 24 patches."""
    from tests.convert.test_parity import converted

    model = randomised(dino(1024, 16))
    params, config = converted(model)
    _, x, tx = pixels(config, count=1, size=336)
    with torch.no_grad():
        theirs = model(tx, output_hidden_states=True)
    assert jax.tree.map(jnp.shape, params)["position_table"] == (1 + 37**2, 1024)
    for a, b in zip(np.asarray(states(config, params, x)), theirs.hidden_states, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-4, rtol=1e-4)
