"""Pieces of answers against the text of the whole."""

import itertools

import numpy as np
import pytest

from spatialllm_jax.inference.words import Words


def pieces(tokenizer, tokens, cuts, stop=(), ends=(4,)):
    words, shown = Words(tokenizer, ends, stop), []
    bounds = [0, *cuts, len(tokens)]
    for start, end in itertools.pairwise(bounds):
        shown.append(words.add(tokens[start:end], end == len(tokens)))
        if words.finish:
            break
    return shown, words


@pytest.mark.parametrize("text", [
    "The cat is closer to the camera.", "3 metres\n\n and  more ", "größer – 猫 🐈", " ", ""])
def test_pieces_are_the_whole_whatever_the_cuts(tiny_tokenizer, text):
    tokens = list(tiny_tokenizer.encode(text))
    rng = np.random.default_rng(0)
    for cuts in (range(1, len(tokens)), [], sorted(rng.integers(0, len(tokens) + 1, 3))):
        shown, words = pieces(tiny_tokenizer, tokens, list(cuts))
        assert "".join(shown) == tiny_tokenizer.decode(tokens) and words.finish == "length"
        assert "\ufffd" not in "".join(shown) and words.count == len(tokens)
    shown, words = pieces(tiny_tokenizer, [*tokens, 4], [])
    assert "".join(shown) == tiny_tokenizer.decode(tokens) and words.finish == "stop"


@pytest.mark.parametrize(("stop", "expected"), [
    (("closer",), "The cat is"), (("is closer", "cat"), "The"),
    (("closer to the moon",), "The cat is closer to the dog"), (("The",), ""),
    ((" dog",), "The cat is closer to the"), (("dogs",), "The cat is closer to the dog")])
def test_stop_texts_end_it_and_never_show(tiny_tokenizer, stop, expected):
    tokens = list(tiny_tokenizer.encode("The cat is closer to the dog"))
    for cuts in (list(range(1, len(tokens))), []):
        shown, words = pieces(tiny_tokenizer, tokens, cuts, stop)
        assert "".join(shown) == expected
        assert words.finish == ("length" if expected.endswith("dog") else "stop")
