import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialllm_jax.data import tokenizer as tokenizers
from spatialllm_jax.errors import UserError

CORPUS = ["Which is closer, the refrigerator or the dog?", "refrigerator", "the dog", "It is 1.5 metres away.",
          "Which side of the dog faces us?\nfront"] * 4


@pytest.fixture(scope="module")
def trained():
    return tokenizers.train(CORPUS, 1024)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back(trained, text):
    ids = trained.encode(text)
    assert all(0 <= i < trained.vocab_size for i in ids)
    if not any(special in text for special in tokenizers.LLAMA3_SPECIALS):
        assert trained.decode(ids) == text.strip()


def test_frequent_words_are_one_token_and_the_same_everywhere(trained):
    inside, start = trained.encode("the refrigerator"), trained.encode("refrigerator")
    assert len(start) == 1 and len(inside) == 2 and inside[1] == start[0]
    assert trained.encode("refrigerator?")[0] == start[0] and trained.encode("the\nrefrigerator")[-1] != start[0]
    after_end = trained.encode("<|eot_id|>refrigerator")
    assert after_end == (trained.id("<|eot_id|>"), start[0])


def test_digits_and_marks_stay_single(trained):
    ids = trained.encode("12.75")
    assert [trained.backend.decode([i]).strip() for i in ids] == ["1", "2", ".", "7", "5"]
    assert trained.encode("dog[0]")[1:] == trained.encode("cow[0]")[-3:]


def test_unknown_words_fall_back_on_bytes(trained):
    assert trained.decode(trained.encode("zyx Ωλ 日本 🚗")) == "zyx Ωλ 日本 🚗"


def test_specials(trained):
    ids = trained.encode("<|begin_of_text|>the dog<|eot_id|>")
    assert ids[0] == trained.id("<|begin_of_text|>") and ids[-1] == trained.id("<|eot_id|>")
    assert trained.decode(ids) == "the dog"
    assert trained.has("<|eot_id|>") and not trained.has("</s>")
    with pytest.raises(UserError, match="</s>"):
        trained.id("</s>")
    assert "<|begin_of_text|>" not in trained.backend.decode(list(trained.encode("the dog")), skip_special_tokens=False)


def test_pickle_save_load_and_training_twice(trained, tmp_path):
    text = "Which side of the refrigerator faces us?\nfront 12"
    trained.save(tmp_path / "run")
    for copy in (pickle.loads(pickle.dumps(trained)), tokenizers.load(tmp_path / "run"),
                 tokenizers.load(tmp_path / "run" / "tokenizer.json"), tokenizers.train(CORPUS, 1024)):
        assert copy.encode(text) == trained.encode(text) and copy.vocab_size == trained.vocab_size


def test_user_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer.json at .*nowhere"):
        tokenizers.load(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json is not a tokenizers file"):
        tokenizers.load(tmp_path)
