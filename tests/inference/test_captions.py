"""A prompt without a question continues exactly what stage 1's `plain` form trains on."""

import numpy as np

from spatialllm_jax.data import chat
from spatialllm_jax.inference.prompts import ChatSettings, open_prompt


def test_caption_prompt_is_the_plain_form_up_to_the_caption(tiny_tokenizer):
    settings = ChatSettings("llama3", "", 16, "pad")
    prompt = open_prompt(tiny_tokenizer, settings, "", 4)
    trained = chat.encode_plain(tiny_tokenizer, "a red wall", num_image_tokens=4,
                                begin=chat.begin_token(tiny_tokenizer))
    start = trained.answers[0][0]
    assert prompt.length == start == 5 and not prompt.supervised.any()
    np.testing.assert_array_equal(prompt.tokens, trained.tokens[:start])
    np.testing.assert_array_equal(prompt.image_index, trained.image_index[:start])
    np.testing.assert_array_equal(prompt.positions, trained.positions[:start])


def test_a_question_keeps_the_chat_form(tiny_tokenizer):
    settings = ChatSettings("llama3", "", 16, "pad")
    prompt = open_prompt(tiny_tokenizer, settings, "How far is the cat?", 4)
    trained = chat.encode(tiny_tokenizer, [("How far is the cat?", "1 metres")], template="llama3", system="",
                          num_image_tokens=4)
    np.testing.assert_array_equal(prompt.tokens, trained.tokens[:trained.answers[0][0]])
