"""Servers on the small checkpoints."""

import functools

import pytest

from testing.server import Server
from tests.serving.oracle import Oracle


@pytest.fixture(scope="session")
def start_server(tiny_checkpoint):
    """A function from server arguments to a Server on the tiny checkpoint."""
    return functools.partial(Server, tiny_checkpoint)


@pytest.fixture(scope="session")
def oracle(tiny_checkpoint) -> Oracle:
    """The plain model of the tiny checkpoint."""
    return Oracle(tiny_checkpoint)


@pytest.fixture
def empty_cache(server):
    """Nothing cached before the test, and nothing in use after it."""
    server.flush_cache()
    yield
    counters = server.idle_counters()
    assert server.is_running() and not any(counters.values()), counters
