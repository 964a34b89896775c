"""One compiled engine for all tests of the server."""

import pytest

pytest.importorskip("starlette")

from tests.serving.running import serving, tiny_engine, tiny_worker


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
