"""Pipeline stages on GPUs of one host answer as one stage does, bit by bit, with graphs of decode and of prefill."""

import pytest
import torch

from testing.server import given_number
from tests.serving.client import all_at_once, complete, random_prompt

pytestmark = pytest.mark.gpu

LENGTHS = 1, 64, 385, 513, 1450
GRAPHS_OF_PREFILL = "--cuda-graph-backend-prefill breakable"
# Arguments of both servers, and those that divide the second one into stages.
CASES = {
    "two stages": ("", "--pp-size 2"),
    "two stages, graphs of prefill": (GRAPHS_OF_PREFILL, "--pp-size 2"),
    "two stages of two ranks": ("--tp-size 2", "--pp-size 2"),
    "six stages": ("", "--pp-size 6"),  # of one layer each: the first without states, the second without pages
}


@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_of_one_stage(start_server, case):
    shared, stages = CASES[case]
    words = tuple(f"{shared} {stages}".split())
    needed = given_number(words, "--pp-size") * given_number(words, "--tp-size")
    if needed > torch.cuda.device_count():
        pytest.skip(f"needs {needed} GPUs")
    prompts, found = [random_prompt(length, 500, seed=1) for length in LENGTHS], []
    for arguments in (shared.split(), words):
        with start_server("--chunked-prefill-size", "256", *arguments) as server:
            found.append([complete(server.client, prompt, 20) for prompt in prompts])
            assert [len(answer.tokens) for answer in all_at_once(complete, server.client, prompts, 20)] == [20] * 5
            counters = server.idle_counters()
            assert server.is_running() and not any(counters.values()), counters
    assert found[0] == found[1]
