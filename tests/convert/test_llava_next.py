"""LLaVA-NeXT against transformers on random weights: files, tiles, token order, logits, greedy words."""

import dataclasses
import functools
import io
import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs torch: pip install torch")
transformers = pytest.importorskip("transformers")

from PIL import Image  # noqa: E402
from transformers.image_processing_utils import select_best_resolution  # noqa: E402
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil  # noqa: E402
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches  # noqa: E402

from convert import from_hf, llava_next  # noqa: E402
from convert.export import to_torch  # noqa: E402
from convert.folders import config_from_hf, load  # noqa: E402
from convert.verify import verify  # noqa: E402
from launch import ask, evaluate  # noqa: E402
from spatialllm_jax.data import chat, tiling  # noqa: E402
from spatialllm_jax.errors import UserError  # noqa: E402
from spatialllm_jax.inference import engine as inference  # noqa: E402
from spatialllm_jax.inference import scoring  # noqa: E402
from spatialllm_jax.inference.engine import load_engine  # noqa: E402
from spatialllm_jax.inference.prompts import ChatSettings, Prompt, open_prompt, show  # noqa: E402
from spatialllm_jax.models.spatialllm import SpatialLLM  # noqa: E402
from spatialllm_jax.models.tensor_file import TensorFiles  # noqa: E402
from spatialllm_jax.training.features import stored_features  # noqa: E402
from tests.convert.test_parity import VISION, assert_states, converted, llama_config, randomised  # noqa: E402

SIZE, SIDE = VISION["image_size"], VISION["image_size"] // VISION["patch_size"]
PINPOINTS = [[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE], [3 * SIZE, SIZE], [SIZE, 3 * SIZE]]
IMAGE = 511
# (height, width): wide, tall, square, exactly a canvas, borders of whole tokens, a sliver, a photograph.
SIZES = [(20, 50), (50, 21), (40, 40), (24, 48), (30, 100), (7, 90), (480, 640)]


@pytest.fixture(scope="module")
def next_model():
    torch.manual_seed(0)        # the line break's embedding is drawn from it
    return randomised(transformers.LlavaNextForConditionalGeneration(transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, intermediate_size=64),
        text_config=llama_config(vocab_size=512, max_position_embeddings=512), image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS)))


def picture(height, width):
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def processed(image):
    """transformers' pixel values [n, 3, S, S] of one picture."""
    processor = LlavaNextImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE},
                                           image_grid_pinpoints=PINPOINTS)
    return processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("pinpoints", [PINPOINTS, [list(p) for p in llava_next.PINPOINTS],
                                       [[336 * a, 336 * b] for a in range(1, 7) for b in range(1, 7)]])
def test_canvas_for_many_sizes(pinpoints):
    rng = np.random.default_rng(0)
    sizes = [*SIZES, *np.exp(rng.uniform(np.log(2), np.log(5000), (2000, 2))).astype(int).tolist()]
    for height, width in sizes:
        expected = select_best_resolution((height, width), pinpoints)
        if expected is not None:        # slivers that keep no pixel leave transformers without an answer
            assert tiling.best_resolution(height, width, [tuple(p) for p in pinpoints]) == tuple(expected)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tiles_equal_the_image_processor_bit_by_bit(height, width):
    image = picture(height, width)
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_grid_pinpoints=PINPOINTS,
        do_rescale=False, do_normalize=False)
    expected = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0].transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(tiling.tiles(image, PINPOINTS, SIZE), expected)


def test_layout_equals_pack_image_features(next_model):
    """Features that carry their own index come out in our order."""
    rng = np.random.default_rng(1)
    for height, width in [*SIZES, *rng.integers(5, 300, (200, 2)).tolist()]:
        count = image_size_to_num_patches((height, width), PINPOINTS, SIZE)
        newline = 5 * SIDE**2
        numbered = torch.arange(count * SIDE**2, dtype=torch.float32).reshape(count, SIDE**2, 1)
        packed, _ = next_model.model.pack_image_features(
            [numbered], [(height, width)], "default", torch.tensor([float(newline)]))
        ours = tiling.layout(height, width, PINPOINTS, SIZE, SIDE)
        np.testing.assert_array_equal(ours, packed[0][:, 0].numpy().astype(int), err_msg=f"{height} x {width}")


def theirs(model, image, layout, before, after):
    tokens = torch.tensor([[*before, *[IMAGE] * len(layout), *after]])
    # Without a mask, generate() would take tokens that equal the padding's for padding.
    return dict(input_ids=tokens, attention_mask=torch.ones_like(tokens), pixel_values=processed(image),
                image_sizes=torch.tensor([image.shape[:2]]))


@functools.partial(jax.jit, static_argnums=0)
def our_logits(config, params, tokens, index, segments, pixels):
    def run(model):
        positions = np.arange(tokens.shape[1])[None]
        return model.logits(model(tokens, positions, segments, 0 * segments, index, images=pixels))

    return SpatialLLM(config).apply({"params": params}, method=run)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_logits(next_model, height, width):
    params, config = converted(next_model)
    assert config.tiling is not None and config.llm.num_kv_heads < config.llm.num_heads
    image = picture(height, width)
    layout = tiling.layout(height, width, config.tiling.pinpoints, SIZE, SIDE)
    inputs = theirs(next_model, image, layout, range(3), range(10, 16))
    with torch.no_grad():
        expected = next_model(**inputs).logits
    length = inputs["input_ids"].shape[1]
    tokens = np.pad(inputs["input_ids"].numpy(), ((0, 0), (0, 256 - length)))
    index = np.full(tokens.shape, -1)
    index[:, 3:3 + len(layout)] = layout
    pixels = np.zeros((1, config.num_slots, SIZE, SIZE, 3), np.uint8)
    cut = tiling.tiles(image, config.tiling.pinpoints, SIZE)
    pixels[0, :len(cut)] = cut
    segments = (np.arange(256) < length).astype(np.int32)[None]
    ours = our_logits(config, params, tokens, index, segments, pixels)
    assert_states([ours[:, :length]], [expected])


def test_files_there_and_back(next_model, tmp_path):
    next_model.save_pretrained(tmp_path)
    params, config = load(tmp_path)
    in_memory, same = converted(next_model)
    assert config == same and config.tiling.pinpoints == tuple(map(tuple, PINPOINTS))
    jax.tree.map(np.testing.assert_array_equal, params, in_memory)
    stored = TensorFiles(tmp_path)
    back = {name.replace("vision_tower.vision_model.", "vision_tower."): value
            for name, value in to_torch(params, "llava_next", config).items()}
    assert set(back) == set(stored)
    for name in stored:
        np.testing.assert_array_equal(back[name], stored[name], err_msg=name)


def test_verify_runs_both_sides(next_model, tmp_path):
    next_model.save_pretrained(tmp_path)
    differences = verify(tmp_path)
    assert differences and all(d.passed and d.largest < 1e-4 for d in differences)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(next_model, tiny_tokenizer, tmp_path_factory):
    """A model folder made by convert.from_hf, with what the engine wants beside the weights."""
    source = tmp_path_factory.mktemp("next") / "hf"
    next_model.save_pretrained(source)
    tiny_tokenizer.save(source)
    out = source.with_name("model")
    assert from_hf.main([str(source), "--out", str(out)])["family"] == "llava_next"
    (out / "chat.json").write_text(json.dumps(dataclasses.asdict(SETTINGS)))
    return out


SETTINGS = ChatSettings("compact", "look", SIZE, "pad")


class Numbers:
    """A tokenizer that writes ids, so that no two answers look alike."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def decode(self, ids):
        return " ".join(map(str, ids))


def test_engine_speaks_as_transformers_does(next_model, folder, tiny_tokenizer):
    """Greedy words about pictures of every shape in one batch, token for token."""
    engine = load_engine(folder, batch_size=4)
    engine.tokenizer = Numbers(engine.tokenizer)
    stop = list(chat.stop_ids(tiny_tokenizer, "compact"))
    question = "What colour is the wall?"
    prompts = [Prompt(f"{size}", png(picture(*size)), question) for size in SIZES]
    answers = engine.generate(prompts, max_new_tokens=8)
    assert len(set(answers)) > 3
    for size, answer in zip(SIZES, answers, strict=True):
        layout = tiling.layout(*size, PINPOINTS, SIZE, SIDE)
        prompt = show(open_prompt(tiny_tokenizer, SETTINGS, question, len(layout)), layout)
        inside = np.flatnonzero(prompt.image_index >= 0)
        inputs = theirs(next_model, picture(*size), layout, prompt.tokens[:inside[0]], prompt.tokens[inside[-1] + 1:])
        with torch.no_grad():
            out = next_model.generate(**inputs, max_new_tokens=8, do_sample=False,
                                      eos_token_id=stop, pad_token_id=0)
        new = [token for token in out[0, prompt.length:].tolist() if token not in stop]
        assert answer == " ".join(map(str, new)), size


@pytest.mark.slow
def test_engine_reads_several_tiled_pictures_as_transformers_does(next_model, folder, tiny_tokenizer):
    """Three pictures among words, tiled each in its own way, in rows that have room for four: words and likelihoods."""
    engine = load_engine(folder, batch_size=2)
    engine.tokenizer = Numbers(engine.tokenizer)
    stop = list(chat.stop_ids(tiny_tokenizer, "compact"))
    asked = [SIZES[:3], SIZES[4:1:-1], (SIZES[3], SIZES[5], SIZES[3])]
    prompts = []
    for sizes in asked:
        (name, first), *more = ((f"{size}", png(picture(*size))) for size in sizes)
        prompts.append(Prompt(name, first, "First <image> then <image> and <image> What is this?", more=tuple(more)))
    answers = engine.generate(prompts, max_new_tokens=8)
    option = (*tiny_tokenizer.encode("a wall"), tiny_tokenizer.id("<|eot_id|>"))
    scores = engine.score([dataclasses.replace(prompt, options=("a wall",)) for prompt in prompts], row_length=640)
    assert len({round(float(score[0]), 3) for score in scores}) == 3
    for sizes, prompt, answer, score in zip(asked, prompts, answers, scores, strict=True):
        request = engine.request(prompt, 8)
        tokens, index = (np.concatenate([getattr(part, name) for part in (request.before, request.after)])
                         for name in ("tokens", "image_index"))
        tokens = torch.tensor(np.where(index >= 0, IMAGE, tokens))[None]
        pixels = [processed(picture(*size))[0] for size in sizes]
        most = max(map(len, pixels))
        pixels = torch.stack([torch.cat([cut, torch.zeros(most - len(cut), *cut.shape[1:])]) for cut in pixels])
        shown, whole = dict(pixel_values=pixels, image_sizes=torch.tensor(sizes)), torch.tensor([[*tokens[0], *option]])
        with torch.no_grad():
            out = next_model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=8,
                                      do_sample=False, eos_token_id=stop, pad_token_id=0, **shown)
            logits = next_model(input_ids=whole, attention_mask=torch.ones_like(whole), **shown).logits[0]
        assert answer == " ".join(str(token) for token in out[0, tokens.shape[1]:].tolist() if token not in stop)
        logp = torch.log_softmax(logits[-len(option) - 1:-1], -1)[range(len(option)), option]
        assert score[0] == pytest.approx(float(logp.sum()), abs=2e-4)


def test_ask(folder, tmp_path):
    (tmp_path / "wide.png").write_bytes(png(picture(20, 50)))
    said = ask.main(["Which is closer?", "--model", str(folder), "--image", str(tmp_path / "wide.png"),
                     "--options", "cat,dog", "--region", "0.1,0.1,0.4,0.9"])
    assert said["answer"] in ("cat", "dog")
    assert ask.main(["Which is closer?", "--model", str(folder), "--image", str(tmp_path / "wide.png"),
                     "--max-new-tokens", "4"])["answer"]


def test_evaluate(folder, tiny_dataset, tmp_path):
    flags = ["--model", str(folder), "--data", tiny_dataset, "--out", str(tmp_path), "--limit", "2", "--quiet"]
    result = evaluate.main([*flags, "--row-length", "320", "--batch-size", "2", "--blind"])
    assert result["scores"]["overall"]["n"] > 0 and result["blind"]["overall"]["n"] == result["scores"]["overall"]["n"]
    with pytest.raises(UserError, match="leave out --features"):
        evaluate.main([*flags, "--features", str(tmp_path / "features")])


def test_scores_do_not_depend_on_company(folder):
    engine = load_engine(folder, batch_size=2)
    prompts = [Prompt(f"{size}", png(picture(*size)), "Which is closer?", ("cat", "dog")) for size in SIZES[:5]]
    prompts.append(Prompt("", None, "Which is closer?", ("cat", "dog")))
    programs = [program._cache_size() for program in (inference._encode, inference._connect, scoring.option_scores)]
    together = engine.score(prompts, row_length=256)
    again = [program._cache_size() for program in (inference._encode, inference._connect, scoring.option_scores)]
    assert all(after <= before + 1 for before, after in zip(programs, again, strict=True)), "one program for all shapes"
    assert len({round(float(scores[0]), 4) for scores in together}) == len(prompts)
    single = load_engine(folder, batch_size=1)
    for prompt, scores in zip(prompts, together, strict=True):
        np.testing.assert_allclose(single.score([prompt], row_length=320)[0], scores, atol=5e-5)
    with pytest.raises(UserError, match="give a greater row length"):
        engine.score(prompts[:1], row_length=32)


def test_user_mistakes_are_explained(next_model, tmp_path):
    hf = next_model.config.to_dict()
    with pytest.raises(UserError, match="'qwen2' is not supported"):
        config_from_hf({**hf, "text_config": {**hf["text_config"], "model_type": "qwen2"}})
    with pytest.raises(UserError, match="sliding_window null"):
        config_from_hf({**hf, "text_config": {**hf["text_config"], "model_type": "mistral"}})
    with pytest.raises(UserError, match="not a multiple"):
        config_from_hf({**hf, "image_grid_pinpoints": [[SIZE, SIZE + 1]]})
    with pytest.raises(UserError, match="projector_hidden_act 'relu'"):
        config_from_hf({**hf, "projector_hidden_act": "relu"})
    with pytest.raises(UserError, match="leave out --features"):
        stored_features(config_from_hf(hf), {}, [], image_size=SIZE, resize="pad", folder=str(tmp_path))


def test_sparse_published_configs():
    """llava-hf's files leave out whatever equals transformers' defaults."""
    config = config_from_hf({
        "model_type": "llava_next", "vision_config": {
            "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "num_attention_heads": 16,
            "num_hidden_layers": 24, "patch_size": 14},
        "text_config": {"intermediate_size": 14336, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
                        "rope_theta": 500000.0, "vocab_size": 128320}})
    from spatialllm_jax.models.presets import CLIP_L_336, LLAMA3_8B
    assert config.llm == dataclasses.replace(LLAMA3_8B, vocab_size=128320) and config.vision == (CLIP_L_336,)
    assert config.tiling.pinpoints == llava_next.PINPOINTS and config.num_slots == 5
