"""Servers on the tiny checkpoint."""

import functools

import pytest
from serving.harness import Server


@pytest.fixture(scope="session")
def start_server(tiny_checkpoint):
    """A function from server arguments to a Server on the tiny checkpoint."""
    return functools.partial(Server, tiny_checkpoint)
