"""Speculation beside 4-bit weights, FP8 keys and values and a host cache: still the answers of plain steps."""

import itertools
from pathlib import Path

import pytest

from testing.injected_drafts import VARIABLE
from testing.server import Server
from tests.serving.client import generate, random_prompt
from tests.serving.test_fp8_cache import HOST, TOLERANCE
from tests.serving.test_speculation import INJECTED, Drafts, assert_same

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "sala-tiny-w4a16"
ROWS, VOCABULARY, NEW_TOKENS, POOL_TOKENS = 4, 1000, 40, 4096
LENGTHS = (300, 1000, 1500)  # below dense_len (1,024), across it, and beyond


@pytest.fixture(scope="module")
def drafts(tmp_path_factory) -> Drafts:
    return Drafts(tmp_path_factory.mktemp("drafts") / "drafts.json")


@pytest.fixture(scope="module")
def server(drafts):
    arguments = (
        f"--speculative-algorithm NGRAM --speculative-num-draft-tokens {ROWS} --kv-cache-dtype fp8_e4m3 "
        f"--dtype float32 --chunked-prefill-size 512 --max-running-requests 2 --max-total-tokens {POOL_TOKENS} {HOST}"
    )
    environment = {VARIABLE: str(drafts.path)}
    with Server(CHECKPOINT, *arguments.split(), environment=environment, program=INJECTED) as running:
        yield running


@pytest.fixture
def fill_device(server, drafts):
    seeds = itertools.count(1000)

    def fill() -> None:
        drafts.write(verify=False)
        for seed in itertools.islice(seeds, 5):
            generate(server, random_prompt(POOL_TOKENS // 4, VOCABULARY, seed), 1)

    return fill


@pytest.mark.parametrize("length", LENGTHS)
def test_answers_of_plain_steps(server, drafts, length):
    prompt = random_prompt(length, VOCABULARY, seed=length)
    drafts.write(verify=False)
    server.flush_cache()
    expected, _ = generate(server, prompt, NEW_TOKENS)
    for right in range(ROWS):
        drafts.write(right, texts=[prompt + expected.tokens])
        server.flush_cache()
        answer, meta = generate(server, prompt, NEW_TOKENS)
        assert_same(answer, expected, TOLERANCE)
        assert (meta["spec_num_correct_drafts"] > 0) == (right > 0)


def test_what_verify_steps_wrote_comes_back_from_the_host(server, drafts, fill_device):
    """The first answer crosses 256 tokens, where a verify step leaves a snapshot."""
    prompt = random_prompt(240, VOCABULARY, seed=5)
    drafts.write(verify=False)
    server.flush_cache()
    expected, _ = generate(server, prompt, NEW_TOKENS)
    following = prompt + expected.tokens + random_prompt(20, VOCABULARY, seed=6)
    server.flush_cache()
    expected_next, _ = generate(server, following, NEW_TOKENS)
    server.flush_cache()
    drafts.write(2, texts=[prompt + expected.tokens])
    assert_same(generate(server, prompt, NEW_TOKENS)[0], expected, TOLERANCE)
    fill_device()
    drafts.write(2, texts=[following + expected_next.tokens])
    answer, meta = generate(server, following, NEW_TOKENS)
    assert_same(answer, expected_next, TOLERANCE)
    assert meta["cached_tokens_details"]["host"] == 256 and meta["spec_num_correct_drafts"] > 0
