"""Four ranks give the answers of one: every rank has one query head, half a group, and a copy of a KV head."""

import pytest

from tests.serving.client import all_at_once, complete, generate, random_prompt

TOLERANCE = 1e-4  # float32 as in test_equality; the ranks' partial sums are a further order of sums
LENGTHS = (1, 100, 385, 513, 1200)


@pytest.fixture(scope="module")
def server(start_server):
    arguments = "--tp-size 4 --dtype float32 --chunked-prefill-size 256 --max-running-requests 4"
    with start_server(*arguments.split()) as running:
        yield running


def test_answers_are_those_of_the_whole_model(server, oracle):
    for length in LENGTHS:
        prompt = random_prompt(length, 500, seed=1)
        oracle.check(prompt, complete(server.client, prompt, 6), TOLERANCE)


def test_decode_in_a_batch_across_dense_len(server, oracle):
    prompts = [random_prompt(length, 500, seed=2) for length in (70, 440, 500, 600)]
    for prompt, (answer, _) in zip(prompts, all_at_once(generate, server, prompts, 80), strict=True):
        oracle.check(prompt, answer, TOLERANCE)


def test_prefix_cache(server, oracle):
    """Pages, compressed keys and snapshots of every rank's heads serve the same prompt again, and a longer one."""
    prompt = random_prompt(700, 500, seed=3)
    hits, answers = [], []
    for text in (prompt, prompt, prompt + random_prompt(150, 500, seed=4)):
        answer, meta = generate(server, text, 6)
        oracle.check(text, answer, TOLERANCE)
        hits.append(meta["cached_tokens"])
        answers.append(answer.tokens)
    assert hits == [0, 640, 640]
    assert answers[0] == answers[1]


def test_nothing_is_held_afterwards(server):
    counters = server.idle_counters()
    assert server.is_running() and not any(counters.values()), counters
