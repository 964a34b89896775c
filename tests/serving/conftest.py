"""One compiled engine for all tests of the server."""

import re

import pytest

pytest.importorskip("starlette")

from spatialllm_jax.data import tokenizer
from spatialllm_jax.questions import wording
from tests.conftest import tiny_texts
from tests.serving.running import serving, tiny_engine, tiny_worker


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A tokenizer to which the page's questions are short: they fit into the narrowest of the server's programs."""
    named = [re.sub(r"{\w+}", f"the cat in Region [{k}]", forms[0][0]) for forms in wording.FULL.values()
             for k in range(4)]
    return tokenizer.train(tiny_texts() + named, 512)


@pytest.fixture(scope="session")
def tiny(tiny_tokenizer):
    return tiny_engine(tiny_tokenizer)


@pytest.fixture(scope="session")
def worker(tiny):
    found = tiny_worker(tiny)
    yield found
    found.stop()


@pytest.fixture(scope="session")
def server(worker):
    with serving(worker, body=1 << 20, pixels=1_000_000) as found:
        yield found
