"""Servers on the small checkpoints."""

import functools

import pytest
from serving.harness import Server

TRAINED_ARGUMENTS = ("--dtype", "float32", "--max-running-requests", "4")


@pytest.fixture(scope="session")
def start_server(tiny_checkpoint):
    """A function from server arguments to a Server on the tiny checkpoint."""
    return functools.partial(Server, tiny_checkpoint)


@pytest.fixture(scope="session")
def trained_server(trained_checkpoint):
    """A running server on sala-tiny."""
    with Server(trained_checkpoint, *TRAINED_ARGUMENTS) as running:
        yield running
