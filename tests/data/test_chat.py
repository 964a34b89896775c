"""Chat templates against the layouts their authors publish, and masks against the texts they came from."""

import itertools

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from spatialllm_jax.data import chat, samples
from spatialllm_jax.data import tokenizer as tokenizer_lib
from spatialllm_jax.errors import UserError

SPECIALS = (*tokenizer_lib.LLAMA3_SPECIALS, "<|im_start|>", "<|im_end|>", "<s>", "</s>")
TURNS = [("Which is closer, the cat or the dog?", "the dog"), ("How many beds are there?", "2"),
         ("Does it face us?\nAnswer yes or no.", "no, it does not")]
SYSTEM = "You see a picture."


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of single bytes: what it encodes can be read back to the byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIALS))
    return tokenizer_lib.Tokenizer(backend)


@pytest.fixture(scope="module")
def trained():
    return tokenizer_lib.train([text for turn in TURNS * 4 for text in turn], 600)


def text_of(tokenizer, ids):
    return tokenizer.backend.decode([int(i) for i in ids], skip_special_tokens=False)


def with_image(tokenizer, encoded):
    """The whole conversation as text, "<image>" where the picture is."""
    slots = np.flatnonzero(encoded.image_index >= 0)
    if not len(slots):
        return text_of(tokenizer, encoded.tokens)
    assert (np.diff(slots) == 1).all()
    assert (encoded.image_index[slots] == np.arange(len(slots))).all()
    return (text_of(tokenizer, encoded.tokens[:slots[0]]) + "<image>"
            + text_of(tokenizer, encoded.tokens[slots[-1] + 1:]))


LLAMA3 = ("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou see a picture.<|eot_id|>"
          "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhich is closer, the cat or the dog?<|eot_id|>"
          "<|start_header_id|>assistant<|end_header_id|>\n\nthe dog<|eot_id|>"
          "<|start_header_id|>user<|end_header_id|>\n\nHow many beds are there?<|eot_id|>"
          "<|start_header_id|>assistant<|end_header_id|>\n\n2<|eot_id|>")
VICUNA = ("<s>You see a picture. USER: <image>\nWhich is closer, the cat or the dog? ASSISTANT: the dog</s>"
          "USER: How many beds are there? ASSISTANT: 2</s>")
CHATML = ("<|im_start|>system\nYou see a picture.<|im_end|>\n<|im_start|>user\n<image>\n"
          "Which is closer, the cat or the dog?<|im_end|>\n<|im_start|>assistant\nthe dog<|im_end|>\n"
          "<|im_start|>user\nHow many beds are there?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>")
COMPACT = ("<|begin_of_text|>You see a picture.<image>Which is closer, the cat or the dogthe dog<|eot_id|>"
           "How many beds are there2<|eot_id|>")


@pytest.mark.parametrize(("template", "layout"), [
    ("llama3", LLAMA3), ("vicuna_v1", VICUNA), ("chatml", CHATML), ("compact", COMPACT)])
def test_layouts(letters, template, layout):
    encoded = chat.encode(letters, TURNS[:2], template=template, num_image_tokens=4, system=SYSTEM)
    assert with_image(letters, encoded) == layout
    # The open prompt is a prefix of the whole, so that training and asking agree.
    prompt = chat.encode(letters, [(TURNS[0][0], None)], template=template, num_image_tokens=4, system=SYSTEM)
    assert (encoded.tokens[:prompt.length] == prompt.tokens).all()
    assert prompt.answers == ((prompt.length, prompt.length),) and encoded.answers[0][0] == prompt.length
    plain = chat.encode(letters, TURNS[:2], template=template, system=SYSTEM)
    without = layout.replace("<image>\n", "").replace("<image>", "")
    assert with_image(letters, plain) == without


@pytest.mark.parametrize("template", ["llama3", "vicuna_v1", "chatml", "compact"])
def test_pictures_among_the_words_of_the_first_message(letters, template):
    """Each at its place, numbered one after the other; questions behind them are branches that share them."""
    shown = [("A: ", 4), (" B: ", 3)]
    encoded = chat.encode(letters, [("C or D?", "C"), TURNS[1]], template=template, pictures=shown, system=SYSTEM)
    one = chat.encode(letters, [("C or D?", "C"), TURNS[1]], template=template, num_image_tokens=4, system=SYSTEM)
    seen = "".join("<image>" if image else text_of(letters, encoded.tokens[list(places)]) for image, places in
                   itertools.groupby(range(encoded.length), lambda at: encoded.image_index[at] >= 0))
    front = "<image>" if template == "compact" else "<image>\n"
    assert seen == with_image(letters, one).replace(front, "A: <image> B: <image>")
    index = encoded.image_index
    assert index[index >= 0].tolist() == list(range(7)) and np.diff(np.flatnonzero(index >= 0)).tolist() == [
        1, 1, 1, 1 + len(" B: "), 1, 1]
    apart = chat.encode(letters, [("C or D?", "C"), TURNS[1]], template=template, pictures=shown, system=SYSTEM,
                        branches=True)
    first = int(np.flatnonzero(index >= 0)[-1]) + 1
    assert (apart.branch_ids[:first] == 0).all() and (apart.branch_ids[first:] > 0).all()
    assert (apart.tokens[:first] == encoded.tokens[:first]).all()
    starts = [first, first + int((apart.branch_ids == 1).sum())]
    assert apart.positions[starts].tolist() == [first, first]


def test_default_and_empty_system(letters):
    official = ("A chat between a curious user and an artificial intelligence assistant. "
                "The assistant gives helpful, detailed, and polite answers to the user's questions.")
    encoded = chat.encode(letters, TURNS[:1], template="vicuna_v1")
    assert with_image(letters, encoded).startswith(f"<s>{official} USER: Which")
    bare = chat.encode(letters, TURNS[:1], template="llama3", system="")
    assert with_image(letters, bare).startswith("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhich")


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("images", [0, 5])
@pytest.mark.parametrize("template", sorted(chat.TEMPLATES))
def test_supervised_tokens_are_the_answers_and_their_ends(letters, trained, template, images, branches):
    for tokenizer in (letters, trained):
        stop = chat.TEMPLATES[template].stop
        if not tokenizer.has(stop):
            continue
        encoded = chat.encode(tokenizer, TURNS, template=template, num_image_tokens=images, branches=branches)
        assert len(encoded.answers) == len(TURNS)
        for (start, end), (_, answer) in zip(encoded.answers, TURNS, strict=True):
            span = encoded.tokens[start:end]
            assert span[-1] == tokenizer.id(stop) and tokenizer.decode(span.tolist()) == answer
            assert text_of(tokenizer, span).strip() == answer + stop
        inside = np.zeros(encoded.length, bool)
        for start, end in encoded.answers:
            inside[start:end] = True
        assert (encoded.supervised == inside).all()
        targets, weights = chat.next_token_targets(encoded)
        assert weights.sum() == inside.sum()
        assert (targets[weights > 0] == encoded.tokens[encoded.supervised]).all()
        assert set(chat.stop_ids(tokenizer, template)) >= {tokenizer.id(stop)}


def test_branches_restart_and_equal_separate_conversations(trained):
    kwargs = {"template": "compact", "num_image_tokens": 4, "system": "look"}
    together = chat.encode(trained, TURNS, branches=True, **kwargs)
    trunk = np.flatnonzero(together.branch_ids == 0)
    assert (trunk == np.arange(len(trunk))).all()
    for index, turn in enumerate(TURNS):
        alone = chat.encode(trained, [turn], branches=True, **kwargs)
        pick = np.concatenate([trunk, np.flatnonzero(together.branch_ids == index + 1)])
        for name in ("tokens", "positions", "supervised", "image_index"):
            assert (getattr(together, name)[pick] == getattr(alone, name)).all(), name
        # Also the same as an ordinary one-turn dialogue.
        assert (alone.positions == np.arange(alone.length)).all()
        assert (alone.tokens == chat.encode(trained, [turn], **kwargs).tokens).all()
    # The prediction at the end of the branch before must not be that of the next branch's first token.
    _, weights = chat.next_token_targets(together)
    crossing = np.flatnonzero(np.diff(together.branch_ids) != 0)
    assert len(crossing) == 3 and (weights[crossing] == 0).all()


def test_dialogue_positions_run_on(trained):
    encoded = chat.encode(trained, TURNS, template="compact", num_image_tokens=4)
    assert (encoded.positions == np.arange(encoded.length)).all() and (encoded.branch_ids == 0).all()


def test_max_length_drops_whole_turns(letters):
    full = chat.encode(letters, TURNS, template="vicuna_v1", num_image_tokens=4)
    ends = [end for _, end in full.answers]
    for budget in range(full.length + 2):
        cut = chat.encode(letters, TURNS, template="vicuna_v1", num_image_tokens=4, max_length=budget)
        kept = sum(end <= budget for end in ends)
        assert cut.answers == full.answers[:kept]
        if kept:
            assert cut.length == ends[kept - 1] and (cut.tokens == full.tokens[:cut.length]).all()


def test_plain_captions(letters):
    encoded = chat.encode_plain(letters, "a red car", num_image_tokens=3, begin="<s>")
    assert with_image(letters, encoded) == "<s><image>a red car\n"
    assert text_of(letters, encoded.tokens[encoded.supervised]) == "a red car\n"
    targets, weights = chat.next_token_targets(encoded)
    assert weights[3] == 1 and weights[:3].sum() == 0          # the last patch predicts the first letter
    assert text_of(letters, targets[weights > 0]) == "a red car\n"
    assert chat.encode_plain(letters, "a red car", num_image_tokens=3, begin=None).length == encoded.length - 1
    assert chat.encode_plain(letters, "a red car", num_image_tokens=3, begin=None, max_length=12).answers == ()


def test_a_caption_in_clip_s_vocabulary():
    """OpenAI's CLIP was trained with its start token before every text and pools at its end token."""
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "red": 1, "car": 2}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    clip = tokenizer_lib.Tokenizer(backend)
    text = samples.TextConfig("llama3", 77, 0)
    encoded = samples.encode_caption(clip, "a red car", text)
    assert encoded.tokens.tolist() == [3, 0, 1, 2, 4]
    cut = samples.encode_caption(clip, "a red car", samples.TextConfig("llama3", 4, 0))
    assert cut.tokens.tolist() == [3, 0, 1, 4]


def test_begin_and_stop_tokens(letters, trained):
    assert chat.begin_token(letters) == chat.begin_token(trained) == "<|begin_of_text|>"
    assert chat.stop_ids(letters, "vicuna_v1")[0] == letters.id("</s>")
    with pytest.raises(UserError, match=r"unknown chat template 'llama4'.*chatml, compact, llama3, vicuna_v1$"):
        chat.template_for("llama4")
    with pytest.raises(UserError, match="</s>"):
        chat.encode(trained, TURNS, template="vicuna_v1")
