"""A server that prefills and one that decodes answer together as one server does, and neither waits for a dead one.

testing/server_pair.py gives each its --disaggregation-mode, and both a --disaggregation-bootstrap-port.
"""

import os
import signal
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor

import pytest

from testing.copying_engine import DELAY_VARIABLE
from testing.server_pair import ServerPair
from tests.serving.client import all_at_once, generate, random_prompt
from tests.serving.oracle import Oracle

pytestmark = pytest.mark.nightly  # two pairs of servers and one alone
TOLERANCE = 1e-4  # as in test_equality
PAGE, POOL_TOKENS, ATTEMPTS, END_SECONDS = 64, 4096, 3, 300
ARGUMENTS = (
    f"--dtype float32 --chunked-prefill-size 256 --max-running-requests 6 --max-total-tokens {POOL_TOKENS} "
    "--disaggregation-transfer-backend mooncake"
)
# Requests are admitted as if they would generate few tokens, so that the pool overflows in the middle.
DECODE = "--disaggregation-decode-extra-slots 2 --num-reserved-decode-tokens 8"
KEEPS = "--disaggregation-decode-enable-radix-cache"
# A server that is gone is noticed in seconds and not in minutes.
ENVIRONMENT = {"SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "60", "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL": "1"}
# One page, whole pages, a part of one; dense, dense until it is decoded, and sparse in several chunks.
LENGTHS = 1, 63, 640, 1000, 1100, 2500


def prompt_of(length: int, seed: int = 1) -> list[int]:
    return random_prompt(length, 1500, seed)


@pytest.fixture(scope="module")
def oracle(trained_checkpoint) -> Oracle:
    return Oracle(trained_checkpoint)


# Pairs of servers: what both are told beside ARGUMENTS, what the one that decodes is told beside DECODE, and seconds
# before a transfer reads its pages. The others are as fast as they can be, so that requests are aborted and retracted
# in other moments.
PAIRS = {
    "decode keeps nothing, transfers are slow": ("", "", "0.3"),
    "decode keeps prefixes": ("", KEEPS, "0"),
    "two ranks each": ("--tp-size 2", KEEPS, "0.1"),
}


@pytest.fixture(scope="module", params=list(PAIRS.values()), ids=list(PAIRS))
def pair(request, trained_checkpoint):
    both, keeps, delay = request.param
    decode, environment = f"{DECODE} {keeps}".split(), ENVIRONMENT | {DELAY_VARIABLE: delay}
    arguments = f"{ARGUMENTS} {both}".split()
    with ServerPair(trained_checkpoint, *arguments, decode=decode, environment=environment) as running:
        running.keeps_prefixes = bool(keeps)
        yield running


@pytest.fixture
def nothing_leaks(pair):
    yield
    for server in pair.servers:
        assert server.is_running()
        counters = server.idle_counters()
        assert not any(counters.values()), counters


def test_answers_are_those_of_one_server(pair, trained_server, oracle, nothing_leaks):
    for length in LENGTHS:
        prompt = prompt_of(length)
        answer, meta = generate(pair, prompt, 40)
        oracle.check(prompt, answer, TOLERANCE)
        assert meta["cached_tokens"] == 0
        alone, _ = generate(trained_server, prompt, 40)
        assert answer.tokens == alone.tokens
        assert answer.logprobs == pytest.approx(alone.logprobs, abs=TOLERANCE)


def test_second_turns(pair, oracle, nothing_leaks):
    """The prompt, and the part of it that is computed again, are found where they were prefilled."""
    for length in (700, 1500):
        prompt = prompt_of(length, seed=2)
        answer, _ = generate(pair, prompt, 80)
        for _ in range(2):
            known, prompt = len(prompt), prompt + answer.tokens + prompt_of(70, seed=3)
            answer, meta = generate(pair, prompt, 40)
            oracle.check(prompt, answer, TOLERANCE)
            assert meta["cached_tokens"] >= known // PAGE * PAGE


def test_dense_and_sparse_prompts_are_kept_apart(pair, oracle, nothing_leaks):
    """A sparse prompt begins as a dense one did that is longer than what is always selected, and the reverse."""
    longer, other = prompt_of(1200, seed=5), prompt_of(1200, seed=6)
    for prompt in (longer[:900], longer, other, other[:900]):
        answer, _ = generate(pair, prompt, 20)
        oracle.check(prompt, answer, TOLERANCE)


def test_pages_on_their_way_are_not_overwritten(pair, oracle, nothing_leaks):
    """Chunks of a sparse prompt are sent that begin as a dense one did; the pool is full, so freed pages are taken.

    Once a snapshot lies where the prompts part, the cache frees the prompt's own pages up to there: it has others.
    """
    for seed in (50, 51):
        pair.flush_cache()
        for length in (1000, 2500):
            generate(pair, prompt_of(length), 1)
        longer = prompt_of(1200, seed)
        for prompt in (longer[:900], longer):
            oracle.check(prompt, generate(pair, prompt, 6)[0], TOLERANCE)


def test_several_at_once(pair, oracle, nothing_leaks):
    prompts = [prompt_of(length, seed=4) for length in (70, 300, 800, 1000, 1300, 128, 5)]
    for prompt, (answer, _) in zip(prompts, all_at_once(generate, pair, prompts, 50), strict=True):
        oracle.check(prompt, answer, TOLERANCE)


def test_a_stream_of_the_official_client(pair, oracle, nothing_leaks):
    prompt, meeting = prompt_of(300, seed=7), pair.meeting()
    fields = {"model": "default", "prompt": prompt, "max_tokens": 8, "temperature": 0}
    extra = {"return_token_ids": True, "ignore_eos": True} | meeting
    with ThreadPoolExecutor(1) as pool:
        prefill = pool.submit(pair.prefill.client.completions.create, **fields, extra_body=extra)
        events = list(pair.decode.client.completions.create(**fields, extra_body=extra, stream=True))
        assert prefill.result().choices
    tokens = [token for event in events for choice in event.choices for token in choice.token_ids or []]
    assert tokens == generate(pair, prompt, 8)[0].tokens and len(tokens) == 8


def test_a_grammar_is_followed(pair, nothing_leaks):
    body = {"text": "one", "sampling_params": {"max_new_tokens": 8, "regex": "[ab]{4}"}}
    text = pair.post("/generate", body)["text"]
    assert len(text) == 4 and set(text) <= set("ab")


def test_retraction_changes_no_answer(pair, oracle, nothing_leaks):
    """Requests outgrow the pool of the server that decodes, which takes some out and brings them back."""
    requests, length, new_tokens = 6, 300, 500
    assert requests * (length + new_tokens) > POOL_TOKENS
    for attempt in range(ATTEMPTS):
        prompts = [prompt_of(length, seed=20 + requests * attempt + index) for index in range(requests)]
        answers = all_at_once(generate, pair, prompts, new_tokens)
        for prompt, (answer, _) in zip(prompts, answers, strict=True):
            assert len(answer.tokens) == new_tokens
            oracle.check(prompt, answer, TOLERANCE)
        if sum(meta["num_retractions"] for _, meta in answers) > 0:
            return
    pytest.fail(f"{ATTEMPTS} times no request was retracted")


def test_abort_of_everything(pair, oracle, nothing_leaks):
    sampling = {"max_new_tokens": 900, "ignore_eos": True}
    body = {"input_ids": prompt_of(2000, seed=8), "sampling_params": sampling}
    for seconds in (0.1, 1.0, 3.0):  # while it is prefilled, on its way, decoded
        with ThreadPoolExecutor(3) as pool:
            answers = [pool.submit(pair.post_both, "/generate", body) for _ in range(3)]
            time.sleep(seconds)
            while not all(answer.done() for answer in answers):
                for server in pair.servers:  # as a router does
                    server.client.post(
                        f"{server.base_url}/abort_request", body={"rid": "", "abort_all": True}, cast_to=object
                    )
                time.sleep(0.2)
        for answer in answers:
            ended = [] if answer.exception() else [one["meta_info"]["finish_reason"]["type"] for one in answer.result()]
            assert answer.exception() or "abort" in ended
    oracle.check(prompt_of(300, seed=9), generate(pair, prompt_of(300, seed=9), 8)[0], TOLERANCE)


def test_a_request_that_no_router_has_seen_is_refused(pair, nothing_leaks):
    for server in pair.servers:
        with pytest.raises(urllib.error.HTTPError) as error:
            generate(server, [5, 6, 7], 4)
        assert error.value.code == 400 and b"bootstrap room" in error.value.read()


def test_retraction_for_good_is_an_error(pair, oracle, nothing_leaks):
    """/pause_generation would have prompt and answer prefilled as one prompt."""
    prompt = prompt_of(990, seed=10)
    with ThreadPoolExecutor(1) as pool:
        before = pair.decode.log.count("Decode batch")
        running = pool.submit(generate, pair, prompt, 2000)
        while pair.decode.log.count("Decode batch") < before + 50:
            assert not running.done(), running.result()
            time.sleep(0.02)
        pair.decode.post("/pause_generation", {"mode": "retract"})
        pair.decode.post("/continue_generation", {})
        error = running.exception(END_SECONDS)
    assert isinstance(error, urllib.error.HTTPError) and error.code == 503
    assert b"its prompt is on another server" in error.read()
    oracle.check(prompt, generate(pair, prompt, 8)[0], TOLERANCE)


def test_nobody_waits_for_a_dead_server(pair, oracle):
    """The last test. Whatever was on its way gets an error, and what needs the other server too."""
    dead, alive = pair.servers if not pair.keeps_prefixes else reversed(pair.servers)
    prompt = prompt_of(2500, seed=11)
    with ThreadPoolExecutor(2) as pool:
        body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 4}} | pair.meeting()
        answers = [pool.submit(server.post, "/generate", body) for server in (dead, alive)]
        os.killpg(dead.process.pid, signal.SIGKILL)
        assert all(answer.exception(END_SECONDS) for answer in answers)
    with pytest.raises(urllib.error.HTTPError) as error:
        alive.post("/generate", body | pair.meeting())
    assert error.value.code == 500
    counters = alive.idle_counters()
    assert alive.is_running() and not any(counters.values()), counters
