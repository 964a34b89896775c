"""An installed lmms-eval asks the server through its OpenAI model class; its answers are the engine's own.

Run by `make test-lmms`, in an environment of its own.
"""

import pytest

from tests.evaluation.lmms_task import WORDS, documents_of, lmms, prompts_of
from tests.serving.running import NAME, NEW

pytestmark = [pytest.mark.slow]
pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; run: make test-lmms")
ASKED = ("What is this?", "What colour is the wall?", "How far is the cat?")


@pytest.mark.parametrize("flags", [(), ("--force_simple",)], ids=["chat", "simple"])     # it has two such classes
def test_words(server, tiny, tmp_path, flags):
    documents = documents_of(ASKED, 6)
    expected = [text.strip() for text in tiny.generate(prompts_of(documents), max_new_tokens=NEW)]
    known = [{**doc, "answer": text if k % 2 else "yes"} for k, (doc, text) in enumerate(
        zip(documents, expected, strict=True))]
    task = WORDS.replace("max_new_tokens: 6", f"max_new_tokens: {NEW}")
    lines, result = lmms(tmp_path, known, "openai", f"model_version={NAME},base_url={server.url}/v1,api_key=none,"
                         "num_concurrent=8,timeout=300", task, "local_words", *flags)
    assert [line["filtered_resps"].strip() for line in lines] == expected and len(set(expected)) > 6
    assert result["equal,none"] == 6 / 13
