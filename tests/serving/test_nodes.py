"""Two nodes on one host, a rank of the model each: one server, and options that only one of the nodes was given."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from testing.server import Port
from tests.serving.client import complete, generate, random_prompt
from tests.serving.oracle import Oracle

TOLERANCE = 1e-4  # as in test_equality
NODES, SPACING = 2, 128
ARGUMENTS = f"--tp-size {NODES} --nnodes {NODES} --dtype float32 --max-running-requests 4 --chunked-prefill-size 128"


@pytest.fixture(scope="module")
def server(start_server):
    """The server of the first node. It is told to select at every length, and the second one how far apart snapshots
    are."""
    port = Port()
    arguments = f"{ARGUMENTS} --dist-init-addr 127.0.0.1:{port.number}".split()
    nodes = (
        start_server(*arguments, "--node-rank", "0", "--dense-as-sparse"),
        start_server(*arguments, "--node-rank", "1", environment={"SALA_SNAPSHOT_SPACING": str(SPACING)}),
    )
    with ExitStack() as running, ThreadPoolExecutor(NODES) as pool:
        first, _ = pool.map(running.enter_context, nodes)  # none is ready before the others are
        yield first
    port.release()


def test_answers_are_those_of_one_node(server, tiny_checkpoint):
    oracle = Oracle(tiny_checkpoint, dense_len=0)
    for length in (70, 500, 900):
        prompt = random_prompt(length, 500, seed=1)
        oracle.check(prompt, complete(server.client, prompt, 6), TOLERANCE)


def test_what_the_second_node_was_told_holds_on_the_first(server):
    """A prompt that parts from another one starts from the last snapshot before that."""
    document = random_prompt(900, 500, seed=2)
    generate(server, document, 1)
    _, meta = generate(server, document[:300] + random_prompt(600, 500, seed=3), 1)
    assert meta["cached_tokens"] == 300 // SPACING * SPACING
