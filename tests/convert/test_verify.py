"""convert.verify passes what is equal, fails what is not, and says why it cannot run."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comparing needs torch: pip install torch")
transformers = pytest.importorskip("transformers")

from PIL import Image  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from convert import from_hf, to_hf, verify  # noqa: E402
from convert.engine import abstract  # noqa: E402
from spatialllm_jax.errors import UserError  # noqa: E402
from spatialllm_jax.models import store  # noqa: E402
from spatialllm_jax.models.presets import preset  # noqa: E402
from tests.convert.test_parity import VISION, clip_model, llama_config, randomised  # noqa: E402

MODELS = {
    "clip": lambda: randomised(transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(**VISION, intermediate_size=64))),
    "contrastive": clip_model,
    "dinov2": lambda: randomised(transformers.Dinov2Model(transformers.Dinov2Config(**VISION, mlp_ratio=2))),
    "mae": lambda: randomised(transformers.ViTMAEModel(transformers.ViTMAEConfig(**VISION, intermediate_size=64))),
    "llama": lambda: randomised(transformers.LlamaForCausalLM(llama_config())),
    "llava": lambda: randomised(transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, intermediate_size=64), text_config=llama_config(),
        image_token_index=63))),
}


@pytest.mark.parametrize("family", MODELS)
def test_equal_models_pass(family, tmp_path, capsys):
    MODELS[family]().save_pretrained(tmp_path / "source")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    from_hf.main([str(tmp_path / "source"), "--out", str(tmp_path / "model"), "--quiet"])
    result = verify.main([str(tmp_path / "source"), "--model", str(tmp_path / "model"),
                          "--image", str(tmp_path / "x.png")])
    printed = capsys.readouterr().out
    assert result["states"] == printed.count("e-") // 2 + printed.count("0.0e+00") // 2
    assert ("x.png" in printed) == (family != "llama") and result["largest"] < 1e-4


def test_a_small_change_is_found_and_named(tmp_path, capsys):
    MODELS["llama"]().save_pretrained(tmp_path / "source")
    from_hf.main([str(tmp_path / "source"), "--out", str(tmp_path / "model"), "--quiet"])
    file = tmp_path / "source" / "model.safetensors"
    state = load_file(file)
    state["model.layers.1.mlp.up_proj.weight"] *= 1.01
    save_file(state, file, {"format": "pt"})
    with pytest.raises(SystemExit) as end:
        verify.main([str(tmp_path / "source"), "--model", str(tmp_path / "model")])
    printed = capsys.readouterr().out
    assert end.value.code == 1
    passed = {line.partition("  ")[0]: "PAST" not in line for line in printed.splitlines() if "state" in line}
    assert passed["random ids: state 1"] and not passed["random ids: state 2"]


def test_a_nan_does_not_pass():
    ours, theirs = np.ones((2, 3)), np.ones((2, 3))
    assert verify._difference("x", ours, theirs, 1e-4).passed
    ours[0, 0] = np.nan
    assert not verify._difference("x", ours, theirs, 1e-4).passed


def test_mistakes_are_explained(tmp_path):
    MODELS["clip"]().save_pretrained(tmp_path / "clip")
    MODELS["llama"]().save_pretrained(tmp_path / "llama")
    from_hf.main([str(tmp_path / "llama"), "--out", str(tmp_path / "model"), "--quiet"])
    with pytest.raises(UserError, match="not the same model"):
        verify.main([str(tmp_path / "clip"), "--model", str(tmp_path / "model")])
    with pytest.raises(UserError, match=r"--image .*absent.jpg cannot be read"):
        verify.main([str(tmp_path / "clip"), "--image", str(tmp_path / "absent.jpg")])
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="not a readable"):
        verify.main([str(tmp_path / "clip")])
    with pytest.raises(UserError, match="does not exist"):
        verify.main([str(tmp_path / "absent")])
    (tmp_path / "clip" / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(UserError):
        verify.main([str(tmp_path / "clip")])


@pytest.mark.parametrize(("name", "flags"), [
    ("nano", ()), ("nano_clip_mae", ()), ("nano", ("--part", "llm")), ("nano", ("--part", "vision/dinov2"))])
def test_an_export_is_verified_against_the_folder_it_came_from(name, flags, tmp_path, capsys):
    config = preset(name)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), abstract(config))
    store.save_model(tmp_path / "model", config, params)
    result = to_hf.main([str(tmp_path / "model"), "--out", str(tmp_path / "hf"), "--verify", *flags])
    assert result["states"] >= 1 and "largest" in capsys.readouterr().out
