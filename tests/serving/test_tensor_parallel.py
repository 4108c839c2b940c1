"""Four ranks give the answers of one: every rank has one query head, half a group, and a copy of a KV head."""

import os

import pytest
from serving.client import complete, random_prompt
from serving.oracle import Oracle

RANKS = 4
TOLERANCE = 1e-4  # float32 as in test_equality; the ranks' partial sums are a further order of sums
LENGTHS = (1, 100, 385, 513, 700, 1200)


@pytest.fixture(scope="module")
def server(start_server):
    # SGLang binds each rank to cores and wants to be told which when there are more ranks than NUMA nodes.
    # Its embedding is compiled with a C++ compiler under tensor parallelism, which a test machine need not have.
    cores = "|".join(str(rank % os.cpu_count()) for rank in range(RANKS))
    environment = {"SGLANG_CPU_OMP_THREADS_BIND": cores, "TORCH_COMPILE_DISABLE": "1"}
    arguments = f"--tp-size {RANKS} --dtype float32 --chunked-prefill-size 256".split()
    with start_server(*arguments, environment=environment) as running:
        yield running


def test_answers_are_those_of_the_whole_model(server, tiny_checkpoint):
    oracle = Oracle(tiny_checkpoint)
    for length in LENGTHS:
        prompt = random_prompt(length, oracle.model.config.vocab_size, seed=1)
        oracle.check(prompt, complete(server.client, prompt, 6), TOLERANCE)
    counters = server.idle_counters()
    assert not any(counters.values()), counters
