"""Speculation on a GPU: graphs equal eager steps and the plain model's answers, with overlap scheduling and without."""

import pytest
import torch

from tests.serving.client import all_at_once, complete, random_prompt
from tests.serving.oracle import Oracle

pytestmark = pytest.mark.gpu

SPECULATION = "--speculative-algorithm NGRAM --dtype float32 --chunked-prefill-size 256 --max-running-requests 8"
NO_GRAPHS = "--cuda-graph-backend-decode disabled --cuda-graph-backend-prefill disabled"
SERVERS = {
    "graphs, overlap": "",
    "graphs, no overlap": "--disable-overlap-schedule",
    "eager, overlap": NO_GRAPHS,
    "eager, no overlap": f"{NO_GRAPHS} --disable-overlap-schedule",
    "six rows": "--speculative-num-draft-tokens 6",
}
LENGTHS = (40, 230, 440, 500, 700, 1000)
NEW_TOKENS = 80  # across pages, snapshots and dense_len
TOLERANCE = 1e-3


def repeating_prompt(length: int, seed: int) -> list[int]:
    """A text of few phrases, which prompt lookup goes on with."""
    return (random_prompt(17, 500, seed) * length)[:length]


@pytest.mark.parametrize("options", SERVERS.values(), ids=SERVERS)
def test_answers_are_the_plain_model_s(start_server, tiny_checkpoint, options):
    oracle = Oracle(tiny_checkpoint)
    prompts = [repeating_prompt(length, seed=1) for length in LENGTHS]
    prompts += [random_prompt(length, 500, seed=2) for length in LENGTHS]
    with start_server(*SPECULATION.split(), *options.split()) as server:
        answers = [complete(server.client, prompt, NEW_TOKENS) for prompt in prompts]
        answers += all_at_once(complete, server.client, prompts, NEW_TOKENS)
        following = [prompt + answer.tokens + [5] for prompt, answer in zip(prompts, answers, strict=False)]
        answers += [complete(server.client, prompt, 5) for prompt in following]
        assert not any(server.idle_counters().values())
        assert "accept len: " in server.log
    for prompt, answer in zip(prompts * 2 + following, answers, strict=True):
        oracle.check(prompt, answer, TOLERANCE)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_ranks(start_server, tiny_checkpoint):
    oracle = Oracle(tiny_checkpoint)
    prompts = [repeating_prompt(length, seed=3) for length in LENGTHS]
    with start_server(*SPECULATION.split(), "--tp-size", "2") as server:
        answers = all_at_once(complete, server.client, prompts, NEW_TOKENS)
    for prompt, answer in zip(prompts, answers, strict=True):
        oracle.check(prompt, answer, TOLERANCE)
