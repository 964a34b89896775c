"""The quickstart's questions stay word for word what they were: its recorded results were trained on them."""

import dataclasses
import hashlib
import json

import pytest

from configs.data import quickstart
from spatialllm_jax.questions.build import generate_questions, question_rng
from spatialllm_jax.questions.config import question_config

CATEGORIES = ("car", "dog", "bed", "chair", "school bus", "bus", "person", "sofa")
COLOURS = ("red", "brown", "white", "blue", "green", "black")
# Of ids, types, turns and options over twenty hand-made scenes.
DIGESTS = {
    "general": "c3e099cc76ad8586",
    "probing": "030aec9920dd3852",
    "spatial_ft": "54afc9355cd8832d",
    "spatial_vqa": "33a1db187a8ae1e2",
}


@pytest.mark.parametrize("family", sorted(DIGESTS))
def test_quickstart_questions_do_not_change(random_scene, family):
    settings = quickstart.get_config().families[family].to_dict()
    config = dataclasses.replace(question_config(family, settings), categories=CATEGORIES, colours=COLOURS)
    said = [
        [q.id, q.type, q.turns, q.options, q.answer_index]
        for seed in range(20)
        for q in generate_questions(random_scene(seed, repeat=seed % 5 == 0), config, question_rng(3, seed))
    ]
    assert hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16] == DIGESTS[family]
