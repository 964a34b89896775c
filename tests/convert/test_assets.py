"""Real weights from registry packages, when they are there; and fetching them, without the network."""

import hashlib
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer

from convert import dinov2_onnx, llama_gguf
from launch import fetch_assets
from spatialllm_jax.data import images
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.attention import self_mask
from spatialllm_jax.models.llama import Llama
from spatialllm_jax.models.presets import DINOV2_S, SMOLLM2_135M, TINY_DINOV2
from spatialllm_jax.models.vit import ViT, normalize

FOLDER = Path(os.environ.get("SPATIALLLM_ASSETS", Path(__file__).parents[2] / "assets"))


def asset(name: str) -> Path:
    path = FOLDER / fetch_assets.ASSETS[name].file
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {FOLDER}; python -m launch.fetch_assets --only {name}")
    return path


@pytest.fixture(scope="module")
def smollm():
    pytest.importorskip("gguf", reason="needs the extra assets")
    return llama_gguf.load(asset("smollm2"))


def test_smollm2_knows_the_capital_of_france(smollm, tmp_path):
    params, config = smollm
    assert config == SMOLLM2_135M
    llama_gguf.save_tokenizer(asset("smollm2"), tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
    # The chat form that the model was taught, answered greedily; one program for all lengths.
    asked = ("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer.encode(asked).ids
    start, end, room = len(ids), tokenizer.token_to_id("<|im_end|>"), 48

    def next_token(llm, tokens, length):
        positions = jnp.arange(room)[None]
        hidden, _ = llm(llm.embed(tokens), positions, self_mask(jnp.ones_like(tokens)))
        return llm.logits(hidden[:, length - 1]).argmax(-1)[0]

    step = jax.jit(lambda p, t, n: Llama(config).apply({"params": p}, t, n, method=next_token))
    while len(ids) < room and ids[-1] != end:
        ids.append(int(step(params, jnp.asarray([ids + [0] * (room - len(ids))]), len(ids))))
    assert "Paris" in tokenizer.decode(ids[start:])


def test_smollm2_tokenizer_splits_digits_and_keeps_specials():
    pytest.importorskip("gguf", reason="needs the extra assets")
    tokenizer, config = llama_gguf.load_tokenizer(asset("smollm2"))
    text = "<|im_start|>user\nIs it 13.5 m away, café?<|im_end|>"
    encoded = tokenizer.encode(text)
    assert encoded.tokens[0] == "<|im_start|>" and encoded.tokens[-1] == "<|im_end|>"
    assert "13" not in encoded.tokens and {"1", "3", "5"} <= set(encoded.tokens)
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert "im_start" in config["chat_template"]


PHOTOS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "real3d"


def picture(kind):
    if kind == "noise":
        return np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    photos = sorted(PHOTOS.rglob("*.jpg"))
    if not photos:
        pytest.skip("real photographs (../shared/data/real3d) are absent")
    return images.load(photos[0].read_bytes(), 224, resize="square", name=photos[0].name)[None]


@pytest.mark.parametrize("kind", ["noise", "photo"])
def test_dinov2_matches_onnxruntime(kind):
    onnx = pytest.importorskip("onnx", reason="needs the extra assets")
    runtime = pytest.importorskip("onnxruntime", reason="the oracle is onnxruntime: pip install onnxruntime")
    data = dinov2_onnx.read_onnx(asset("dinov2"))
    params = dinov2_onnx.load(asset("dinov2"))
    graph = onnx.load_model_from_string(data)
    wanted = [node.input[0] for node in graph.graph.node
              if node.name in ("/backbone/encoder/layer.11/norm1/ReduceMean", "/backbone/layernorm/ReduceMean")]
    for name in wanted:
        graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    image = picture(kind)
    config = type(DINOV2_S)(**{**vars(DINOV2_S), "image_size": 224})
    pixels = normalize(image, config)
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    before_last, last = session.run(wanted, {"input_image": np.asarray(pixels).transpose(0, 3, 1, 2)})
    states = jax.jit(lambda p, x: ViT(config).apply({"params": p}, x, "states"))(params, pixels)
    np.testing.assert_allclose(states[-2], before_last, atol=1e-3)
    np.testing.assert_allclose(states[-1], last, atol=1e-3)
    small = jax.eval_shape(ViT(TINY_DINOV2).apply, {"params": params}, jnp.zeros((1, 168, 168, 3)))
    assert small.shape == (1, 144, 384)


def test_unreadable_files_are_explained(tmp_path):
    pytest.importorskip("gguf", reason="needs the extra assets")
    pytest.importorskip("onnx", reason="needs the extra assets")
    junk = {suffix: tmp_path / f"junk{suffix}" for suffix in (".gguf", ".onnx", ".whl")}
    for file in junk.values():
        file.write_bytes(b"junk" * 100)
    for load, suffix in ((llama_gguf.load, ".gguf"), (llama_gguf.load, ".whl"), (dinov2_onnx.load, ".onnx"),
                         (dinov2_onnx.load, ".whl")):
        with pytest.raises(UserError, match=r"not|neither"):
            load(junk[suffix])
        with pytest.raises(UserError, match="fetch_assets"):
            load(tmp_path / f"absent{suffix}")


CONTENT = b"a pinned file"


def fake(content=CONTENT, code="open('pinned.bin','wb').write({!r})", pinned=CONTENT):
    return {"x": fetch_assets.Asset((sys.executable, "-c", code.format(content)), "pinned.bin",
                                    hashlib.sha256(pinned).hexdigest())}


def test_fetch_is_checked_and_done_once(tmp_path):
    path = fetch_assets.fetch("x", tmp_path / "assets", fake())
    assert path.read_bytes() == CONTENT
    assert fetch_assets.fetch("x", tmp_path / "assets", fake(code="raise SystemExit(1) # {!r}")) == path
    path.write_bytes(b"changed")
    with pytest.raises(UserError, match="sha256"):
        fetch_assets.fetch("x", tmp_path / "assets", fake())


@pytest.mark.parametrize(("assets", "word"), [
    (fake(content=b"something else"), "sha256"),
    (fake(code="raise SystemExit('no network') # {!r}"), "no network"),
    ({"x": fetch_assets.Asset(("no-such-client",), "pinned.bin", "")}, "no-such-client"),
])
def test_failed_fetches_leave_nothing(tmp_path, assets, word):
    with pytest.raises(UserError, match=word):
        fetch_assets.fetch("x", tmp_path / "assets", assets)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_unknown_assets_are_named(tmp_path):
    with pytest.raises(UserError, match=r"wings.*smollm2"):
        fetch_assets.main(["--only", "wings", "--out", str(tmp_path)])
