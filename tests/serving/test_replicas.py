"""Replicas of the model in one server: they answer alike, each from its own prefix cache, and end in good order."""

import re
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from testing.server import ANSWER_SECONDS
from tests.serving.client import all_at_once, generate, random_prompt, requests_inside
from tests.serving.oracle import Answer

TOLERANCE = 1e-4  # as in test_equality
REPLICAS, NEW_TOKENS, PAGE, LONG_ANSWER = 2, 6, 64, 400
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "deployment.md"
ARGUMENTS = f"--dp-size {REPLICAS} --dtype float32 --max-running-requests 8 --chunked-prefill-size 128"


@pytest.fixture(scope="module")
def server(start_server):
    with start_server(*ARGUMENTS.split()) as running:
        yield running


def ask(server, prompt: list[int], replica: int) -> tuple[Answer, int]:
    """The answer of one replica, and how many tokens of the prompt it had in its cache."""
    answer, meta = generate(server, prompt, NEW_TOKENS, replica)
    return answer, meta["cached_tokens"]


@pytest.mark.parametrize("length", [300, 900])
def test_replicas_answer_alike_and_cache_for_themselves(server, oracle, length):
    prompt = random_prompt(length, 500, seed=1)
    first, *others = [ask(server, prompt, replica) for replica in range(REPLICAS)]
    oracle.check(prompt, first[0], TOLERANCE)
    assert all(other == first for other in others) and first[1] == 0
    for replica in range(REPLICAS):
        answer, cached = ask(server, prompt, replica)
        assert answer.tokens == first[0].tokens and cached == (length - 1) // PAGE * PAGE


def test_requests_are_divided(server, oracle):
    prompts = [random_prompt(length, 500, seed=2) for length in (100, 300, 500, 700)]
    results = all_at_once(generate, server, prompts, NEW_TOKENS)
    for prompt, (answer, _) in zip(prompts, results, strict=True):
        oracle.check(prompt, answer, TOLERANCE)
    assert {meta["dp_rank"] for _, meta in results} == set(range(REPLICAS))


def test_the_metrics_of_the_guide_are_there(server):
    streamed = server.client.completions.create(model="default", prompt=[5, 6, 7], max_tokens=4, stream=True)
    assert list(streamed)  # times between tokens come from streams
    names = set(re.findall(r"`(sglang:\w+)`", GUIDE.read_text()))
    found = set(re.findall(r"^# TYPE (\S+)", server.get("/metrics"), re.MULTILINE))
    assert names and names <= found


def test_a_server_that_is_told_to_end_answers_first(server, oracle):
    """After SIGTERM it is not ready any more, goes on with what it has and takes what still comes, and then ends."""
    prompt, late = random_prompt(200, 500, seed=3), random_prompt(300, 500, seed=4)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(generate, server, prompt, LONG_ANSWER)
        while not requests_inside(server):
            time.sleep(0.1)
        server.process.terminate()
        while status(server, "/ready") == 200:
            time.sleep(0.1)
        assert status(server, "/ready") == status(server, "/health") == 503 and not running.done()
        oracle.check(late, generate(server, late, NEW_TOKENS)[0], TOLERANCE)
        answer, _ = running.result()
    oracle.check(prompt, answer, TOLERANCE)
    assert len(answer.tokens) == LONG_ANSWER
    assert server.process.wait(ANSWER_SECONDS) == 0


def status(server, path: str) -> int:
    try:
        server.get(path)
        return 200
    except urllib.error.HTTPError as error:
        return error.code
