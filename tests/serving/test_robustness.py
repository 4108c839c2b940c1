"""Bad requests, departing clients and too little memory: clear errors, right answers, nothing leaked."""

import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from testing.server import POLL_SECONDS
from tests.serving.client import all_at_once, complete, generate, random_prompt, requests_inside
from tests.serving.oracle import Oracle

TOLERANCE = 1e-4  # as in test_equality
POOL_TOKENS = 1536
CONTEXT_TOKENS = 1200
ATTEMPTS = 10


@pytest.fixture(scope="module")
def server(start_server):
    arguments = (
        "--dtype float32 --chunked-prefill-size 256 --max-running-requests 6 "
        f"--max-total-tokens {POOL_TOKENS} --context-length {CONTEXT_TOKENS}"
    )
    # SGLang admits requests as if they would generate 8 tokens at most, so the pool overflows in the middle.
    admit_too_many = {"SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "8"}
    with start_server(*arguments.split(), environment=admit_too_many) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_leaks_and_the_server_goes_on(server):
    yield
    assert server.is_running()
    counters = server.idle_counters()
    assert not any(counters.values()), counters
    assert len(complete(server.client, random_prompt(70, 400, seed=9), 2).tokens) == 2


def test_prompt_longer_than_the_context(server):
    with pytest.raises(openai.BadRequestError, match=str(CONTEXT_TOKENS)):
        complete(server.client, random_prompt(CONTEXT_TOKENS + 1, 400, seed=1), 1)


@pytest.mark.parametrize(
    "field, value", [("temperature", -1.0), ("top_p", 1.5), ("max_tokens", -3), ("presence_penalty", 9.0)]
)
def test_invalid_sampling_parameters(server, field, value):
    with pytest.raises(openai.BadRequestError, match=field):
        server.client.completions.create(**{"model": "default", "prompt": "hello", "max_tokens": 1, field: value})


def test_client_that_leaves_in_the_middle(server):
    def leave(seed: int) -> None:
        prompt = random_prompt(300, 400, seed)
        events = server.client.completions.create(model="default", prompt=prompt, max_tokens=800, stream=True)
        next(iter(events))
        events.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(leave, range(4)))


def test_abort_of_everything(server):
    """All three are there when everything is aborted; where one has ended by then, they are asked again."""
    body = {"input_ids": random_prompt(200, 400, 5), "sampling_params": {"max_new_tokens": 900, "ignore_eos": True}}
    for _ in range(ATTEMPTS):
        with ThreadPoolExecutor(3) as pool:
            answers = [pool.submit(server.post, "/generate", body) for _ in range(3)]
            while requests_inside(server) < 3 and not any(answer.done() for answer in answers):
                time.sleep(POLL_SECONDS / 10)
            too_late = any(answer.done() for answer in answers)
            server.client.post(f"{server.base_url}/abort_request", body={"rid": "", "abort_all": True}, cast_to=object)
        if not too_late:
            break
    assert [answer.result()["meta_info"]["finish_reason"]["type"] for answer in answers] == ["abort"] * 3


@pytest.mark.parametrize(
    ("requests", "length", "new_tokens"),
    [(6, 100, 220), (2, 500, 280)],
    ids=["many short ones", "dense prompts that have gone on as sparse ones"],
)
def test_retraction_changes_no_answer(server, tiny_checkpoint, requests, length, new_tokens):
    """The requests outgrow the pool together; some are retracted and prefilled again with what they had generated.

    On a busy machine some may have ended before others begin: then others are asked.
    """
    oracle = Oracle(tiny_checkpoint)
    assert requests * (length + new_tokens) > POOL_TOKENS
    for attempt in range(ATTEMPTS):
        seeds = range(20 + requests * attempt, 20 + requests * (attempt + 1))
        prompts = [random_prompt(length, oracle.model.config.vocab_size, seed) for seed in seeds]
        answers = all_at_once(generate, server, prompts, new_tokens)
        for prompt, (answer, _) in zip(prompts, answers, strict=True):
            assert len(answer.tokens) == new_tokens
            oracle.check(prompt, answer, TOLERANCE)
        if sum(meta["num_retractions"] for _, meta in answers) > 0:
            return
    pytest.fail(f"{ATTEMPTS} times no request was retracted")
