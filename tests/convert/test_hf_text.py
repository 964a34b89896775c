"""What travels with exported weights: tokenizer, chat template, pictures; the same prompt, the same answer."""

import dataclasses
import io
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exports are read by transformers, which needs torch: pip install torch")
transformers = pytest.importorskip("transformers")

from PIL import Image  # noqa: E402

from convert import hf_text, to_hf  # noqa: E402
from spatialllm_jax.data import chat, images  # noqa: E402
from spatialllm_jax.data import tokenizer as tokenizers  # noqa: E402
from spatialllm_jax.errors import UserError  # noqa: E402
from spatialllm_jax.inference import schedule  # noqa: E402
from spatialllm_jax.inference.engine import Engine, load_engine  # noqa: E402
from spatialllm_jax.inference.live import Live, Sampling, lanes_for  # noqa: E402
from spatialllm_jax.inference.prompts import ChatSettings, Prompt, open_prompt  # noqa: E402
from spatialllm_jax.models import store  # noqa: E402
from spatialllm_jax.models.config import ConnectorConfig  # noqa: E402
from spatialllm_jax.models.presets import preset  # noqa: E402
from spatialllm_jax.models.vit import normalize  # noqa: E402
from tests.conftest import random_params  # noqa: E402

QUESTION = "Which is closer, the cat or the dog?"


def llava(vocab_size):
    base = preset("nano_clip")
    return base.replace(connector=ConnectorConfig(grid=2),
                        llm=dataclasses.replace(base.llm, vocab_size=vocab_size, tie_embeddings=False))


def model_folder(path, config, tokenizer, settings):
    store.save_model(path, config, random_params(config))
    tokenizer.save(path)
    (path / "chat.json").write_text(json.dumps(dataclasses.asdict(settings)))
    return path


def photo(width=32, height=24):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def greedy(engine, picture, question, count):
    """Our engine's token ids."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    encoded = open_prompt(engine.tokenizer, engine.settings, question, engine.model.config.connector.num_tokens)
    visual = engine.visual([Prompt("one", buffer.getvalue(), question)])
    stop = chat.stop_ids(engine.tokenizer, engine.settings.template)
    out = schedule.generate(engine.model, engine.params, encoded.tokens[None], np.array([encoded.length], np.int32),
                            encoded.image_index[None], visual, max_new_tokens=count, stop=stop)
    return encoded, [token for token in np.asarray(out)[0].tolist() if token >= 0]


@pytest.mark.parametrize(("spare", "resize", "template"), [
    (0, "stretch", "llama3"), (64, "square", "compact"), (0, "pad", "compact")])
def test_llava_answers_as_our_engine_does(spare, resize, template, tmp_path, tiny_tokenizer):
    """With the vocabulary full, rows are added for the image token; with rows to spare, none are."""
    vocab = tiny_tokenizer.vocab_size + spare
    settings = ChatSettings(template, None, 16, resize)
    source = model_folder(tmp_path / "model", llava(vocab), tiny_tokenizer, settings)
    result = to_hf.main([str(source), "--out", str(tmp_path / "out")])
    assert result["family"] == "llava" and result["image_token_id"] == tiny_tokenizer.vocab_size
    assert any("--pad-vocab" in note for note in result["notes"]) == (not spare)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    assert isinstance(processor, transformers.LlavaProcessor)
    model, info = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    rows = model.get_input_embeddings().weight.shape[0]
    assert rows == (vocab if spare else -(-(vocab + 1) // 64) * 64) == model.config.text_config.vocab_size
    picture = photo()
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt = processor.apply_chat_template(talk, add_generation_prompt=True)
    inputs = processor(images=[picture], text=prompt, return_tensors="pt", add_special_tokens=False)
    engine = load_engine(source)
    encoded, expected = greedy(engine, picture, QUESTION, 12)
    ids = inputs["input_ids"][0].numpy()
    np.testing.assert_array_equal(np.where(ids == result["image_token_id"], 0, ids), encoded.tokens)
    np.testing.assert_array_equal(ids == result["image_token_id"], encoded.image_index >= 0)
    pixels = np.asarray(normalize(images.resize(np.asarray(picture), 16, resize)[0][None], llava(vocab).vision[0]))
    np.testing.assert_allclose(inputs["pixel_values"].numpy(), pixels.transpose(0, 3, 1, 2), atol=1e-5)
    with torch.no_grad():
        got = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, len(ids):].tolist()
    assert got == expected and len(set(got)) > 1
    assert model.generation_config.eos_token_id == list(chat.stop_ids(tiny_tokenizer, template))
    # The added rows' logits are the mean of all others', so that none of them is ever the largest.
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    torch.testing.assert_close(logits[vocab:], logits[:vocab].mean().expand(rows - vocab), atol=1e-4, rtol=1e-4)


AMONG, IN_FRONT = f"A: <image> B: <image> C: <image> {QUESTION}", f"<image>\n<image>\n<image>\n{QUESTION}"
# Rows have room for four of them.
THREE = [(AMONG, "abc"), (AMONG, "bac"), (AMONG, "aba"), (IN_FRONT, "abc"), (IN_FRONT, "abc"),
         ("<image><image>Is the cat closer than <image>", "abc"), ("A: <image> B: <image> C: <image> What?", "abc")]
OTHERS = [(f"<image>\n{QUESTION}", "a"), ("A: <image> B: <image> What?", "ab"), ("<image>\n<image>\nWhat?", "ba"),
          *THREE[:2], ("Which is closer: <image> or <image> or <image> or <image>", "cabc")]


@pytest.fixture(scope="module")
def of_several(tmp_path_factory, tiny_tokenizer):
    """(our engine, transformers' processor, its model, photographs by letter as (picture, PNG))."""
    folder = tmp_path_factory.mktemp("several")
    source = model_folder(folder / "model", llava(tiny_tokenizer.vocab_size), tiny_tokenizer,
                          ChatSettings("llama3", "Look.", 16, "pad"))
    to_hf.main([str(source), "--out", str(folder / "out")])
    shown = {}
    for k, name in enumerate("abc"):
        buffer = io.BytesIO()
        picture = Image.fromarray(np.random.default_rng(k + 1).integers(0, 256, (20, 24 + k, 3), dtype=np.uint8))
        picture.save(buffer, "PNG")
        shown[name] = picture, buffer.getvalue()
    return (load_engine(source, batch_size=4), transformers.AutoProcessor.from_pretrained(folder / "out"),
            transformers.LlavaForConditionalGeneration.from_pretrained(folder / "out"), shown)


def ours_and_theirs(of_several, text, names):
    """(our prompt, transformers' inputs); pictures all in front are ours to place."""
    _, processor, _, shown = of_several
    pictures = [(name, shown[name][1]) for name in names]
    said = processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": text}]}],
                                         add_generation_prompt=True)
    inputs = processor(images=[shown[name][0] for name in names], text=said, return_tensors="pt",
                       add_special_tokens=False)
    front = "<image>\n" * len(names)
    return Prompt(*pictures[0], text.removeprefix(front), more=tuple(pictures[1:])), inputs


@pytest.mark.parametrize("several", [THREE, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["three", "one to four"])
def test_several_pictures_are_read_at_their_places_token_for_token(of_several, several, monkeypatch):
    """Asked together, a few at a time, against transformers one by one; each picture is made into an array once."""
    engine, _, model, _ = of_several
    engine.forget()
    asked = [ours_and_theirs(of_several, text, names) for text, names in several]
    made, pixels = [], Engine.pixels
    monkeypatch.setattr(Engine, "pixels", lambda self, prompt: made.append(prompt.image_id) or pixels(self, prompt))
    monkeypatch.setattr(engine.tokenizer, "decode", list)
    found = engine.generate([prompt for prompt, _ in asked], max_new_tokens=10)
    assert sorted(made) == ["a", "b", "c"]
    for (prompt, inputs), got in zip(asked, found, strict=True):
        ids, image = inputs["input_ids"][0].numpy(), model.config.image_token_id
        request = engine.request(prompt, 10)
        ours = np.concatenate([request.before.tokens, request.after.tokens])
        np.testing.assert_array_equal(np.where(ids == image, 0, ids), ours)
        with torch.no_grad():
            theirs = model.generate(**inputs, max_new_tokens=10, do_sample=False)[0, len(ids):].tolist()
        assert got == [token for token in theirs if token not in engine.stops]
    # Places, order and pictures all matter, and what is shared is computed once.
    assert len({tuple(tokens) for tokens in found}) == len(set(several))
    assert len({engine.request(prompt, 10).group for prompt, _ in asked}) == len(set(several)) - (several == THREE)


def test_options_on_several_pictures_are_scored_as_transformers_would(of_several):
    engine, _, model, _ = of_several
    options = ("the cat", "a wall in blue")
    asked = [ours_and_theirs(of_several, text, names) for text, names in THREE]
    found = engine.score([dataclasses.replace(prompt, options=options) for prompt, _ in asked], row_length=160)
    for (_, inputs), scores in zip(asked, found, strict=True):
        for option, score in zip(options, scores, strict=True):
            answer = [*engine.tokenizer.encode(option), engine.tokenizer.id("<|eot_id|>")]
            ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
            with torch.no_grad():
                logits = model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[0]
            logits = logits[:, :engine.tokenizer.vocab_size]     # without the rows that the export adds
            logp = torch.log_softmax(logits, -1)[range(len(ids[0]) - 1 - len(answer), len(ids[0]) - 1), answer]
            assert score == pytest.approx(float(logp.sum()), abs=2e-4)


def test_places_that_are_not_as_many_as_the_pictures(of_several):
    engine, _, _, shown = of_several
    prompt = Prompt("a", shown["a"][1], "<image> and <image>?", ("x", "y"), more=(("b", shown["b"][1]),) * 2)
    for ask in (engine.generate, engine.score):
        with pytest.raises(UserError, match="<image> in 2 places and 3 pictures"):
            ask([prompt])
    with pytest.raises(UserError, match="a caption is of one picture, not of 3"):
        engine.generate([dataclasses.replace(prompt, question="")])
    with pytest.raises(UserError, match="one picture; several"):
        Live(engine, lanes_for(engine, 0, 4, 2, 1)).ready(prompt, Sampling(4))


def test_own_module_answers_as_our_engine_does(tmp_path, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    base = preset("nano")
    config = base.replace(llm=dataclasses.replace(base.llm, vocab_size=tiny_tokenizer.vocab_size))
    settings = ChatSettings("llama3", "Look closely.", 16, "pad")
    source = model_folder(tmp_path / "model", config, tiny_tokenizer, settings)
    to_hf.main([str(source), "--out", str(tmp_path / "out")])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt = tokenizer.apply_chat_template(talk, tokenize=False)
    prompt = prompt.replace("<image>", "<image>" * model.config.image_seq_length)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    picture = photo()
    with torch.no_grad():
        out = model.generate(**inputs, pixel_values=model.pixels([picture]), max_new_tokens=12, do_sample=False)
    encoded, expected = greedy(load_engine(source), picture, QUESTION, 12)
    assert out[0, encoded.length:].tolist() == expected and len(set(expected)) > 1


@pytest.mark.parametrize("name", chat.TEMPLATES)
@pytest.mark.parametrize("system", [None, "", "Be brief."])
def test_chat_template_writes_what_we_train_on(name, system):
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    form = chat.template_for(name)
    text = hf_text.chat_template(ChatSettings(name, system, 16, "pad"), "<image>")
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(text)
    seen = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What's \"this\"?"}]}]
    rest = [{"role": "assistant", "content": "a cat\n"}, {"role": "user", "content": "And that?"}]
    trunk = form.trunk(form.system if system is None else system) + chat.opening(name)
    expected = trunk + "<image>" + form.ask("What's \"this\"?", True, True)
    assert template.render(messages=seen) == expected
    later = form.reply("a cat\n") + form.ask("And that?", False, False)
    assert template.render(messages=seen + rest) == expected + later
    told = [{"role": "system", "content": "Look."}, {"role": "user", "content": "Hi"}]
    assert template.render(messages=told) == form.trunk("Look.") + chat.opening(name) + form.ask("Hi", True, False)


def test_files_of_the_folder_are_carried(tmp_path, tiny_tokenizer):
    """A decoder with its own template and no chat.json keeps them; an image token of the tokenizer's own is used."""
    config = llava(tiny_tokenizer.vocab_size)
    store.save_model(tmp_path / "model", config, random_params(config))
    backend = tokenizers.Tokenizer(tiny_tokenizer.backend.from_str(tiny_tokenizer.backend.to_str()))
    text = backend.backend.id_to_token(300)
    backend.save(tmp_path / "model")
    carried = {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ 1 }}"},
               "special_tokens_map.json": {"eos_token": "<|eot_id|>"}, "generation_config.json": {"eos_token_id": 4}}
    for name, content in carried.items():
        (tmp_path / "model" / name).write_text(json.dumps(content))
    to_hf.main([str(tmp_path / "model"), "--part", "llm", "--out", str(tmp_path / "llm")])
    for name in ("tokenizer.json", *carried):
        assert json.loads((tmp_path / "llm" / name).read_text()) == json.loads(
            (tmp_path / "model" / name).read_text()), name
    result = to_hf.main([str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--image-token", text])
    assert result["image_token_id"] == 300 and "the tokenizer's own" in " ".join(result["notes"])
    for flags, words in ((["--image-token-id", "7"], "the tokenizer would call <image>"),
                         (["--image-token-id", "9999"], "not one of the vocabulary's"),
                         (["--image-token", text, "--image-token-id", "7"], "is 300; leave the flag out")):
        with pytest.raises(UserError, match=words):
            to_hf.main([str(tmp_path / "model"), "--out", str(tmp_path / "new"), *flags])
        assert not (tmp_path / "new").exists() and not (tmp_path / "new.partial").exists()
