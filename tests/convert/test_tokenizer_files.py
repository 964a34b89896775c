"""Tokenizers that come with weights: sentencepiece's own ids, copied files, and the template a vocabulary implies."""

import json

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models

from convert.tokenizer_files import chat_settings, template_of, tokenizer_files
from spatialllm_jax.data.tokenizer import LLAMA3_SPECIALS, Tokenizer, load, train
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.presets import preset

TEXTS = ["Which object is closer to the camera, the car or the dog?", "It is 12.5 m away.", "  two  spaces", "café ☕",
         "USER: Is the chair\nin front of the sofa? ASSISTANT:", "left,right;up-down (front/back)", ""]


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory):
    """A sentencepiece model of Llama 2's kind: BPE with byte fallback, single digits, a space before all."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="pip install 'spatialllm-jax[sentencepiece]'")
    folder = tmp_path_factory.mktemp("vicuna")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in TEXTS if text] * 40), model_prefix=str(folder / "tokenizer"),
        vocab_size=420, model_type="bpe", byte_fallback=True, split_digits=True, remove_extra_whitespaces=False,
        normalization_rule_name="identity", unk_id=0, bos_id=1, eos_id=2, pad_id=-1, hard_vocab_limit=False,
        minloglevel=2)
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>", "eos_token": "</s>",
         "unk_token": "<unk>", "add_bos_token": True}))
    return folder


def test_a_tokenizer_model_becomes_a_tokenizer_json_with_the_same_ids(vicuna, tmp_path):
    import sentencepiece

    files = tokenizer_files(vicuna)
    (tmp_path / "tokenizer.json").write_bytes(files["tokenizer.json"])
    ours, oracle = load(tmp_path), sentencepiece.SentencePieceProcessor(model_file=str(vicuna / "tokenizer.model"))
    for text in TEXTS:
        assert list(ours.encode(text)) == oracle.encode(text), text
        assert ours.decode(oracle.encode(text)) == text.strip()
    assert (ours.id("<s>"), ours.id("</s>")) == (1, 2)
    assert files["tokenizer_config.json"] == (vicuna / "tokenizer_config.json").read_bytes()
    assert template_of(ours, "x") == "vicuna_v1"


def test_a_broken_tokenizer_model_is_named(tmp_path):
    pytest.importorskip("sentencepiece", reason="pip install 'spatialllm-jax[sentencepiece]'")
    (tmp_path / "tokenizer.model").write_bytes(b"junk" * 10)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(UserError, match=r"tokenizer.model is not a tokenizer"):
        tokenizer_files(tmp_path)


def test_a_tokenizer_json_is_copied_and_checked(tmp_path):
    train(TEXTS, 300).save(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 4}')
    assert set(tokenizer_files(tmp_path)) == {"tokenizer.json", "generation_config.json"}
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizers file"):
        tokenizer_files(tmp_path)


@pytest.mark.parametrize(("tokens", "template"), [
    (LLAMA3_SPECIALS, "llama3"), (("<|im_start|>", "<|im_end|>"), "chatml"), (("<s>", "</s>"), "vicuna_v1"),
    (("a",), None)])
def test_the_vocabulary_tells_the_template(tokens, template):
    tokenizer = Tokenizer(Backend(models.WordLevel({token: i for i, token in enumerate(tokens)}, tokens[0])))
    if template is None:
        with pytest.raises(UserError, match="--template"):
            template_of(tokenizer, "x")
    else:
        assert template_of(tokenizer, "x") == template


def test_the_processor_tells_how_pictures_are_cut(tmp_path):
    tokenizer, config = train(TEXTS, 300), preset("nano")
    (tmp_path / "config.json").write_text("{}")
    assert chat_settings(tmp_path, config, tokenizer).resize == "pad"
    (tmp_path / "preprocessor_config.json").write_text('{"do_center_crop": true}')
    found = chat_settings(tmp_path, config, tokenizer)
    assert (found.template, found.resize, found.image_size) == ("llama3", "square", 16)
    (tmp_path / "config.json").write_text('{"image_aspect_ratio": "pad"}')
    assert chat_settings(tmp_path, config, tokenizer, "compact").resize == "pad"
    assert chat_settings(tmp_path, config, tokenizer, "compact").template == "compact"
