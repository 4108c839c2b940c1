"""The prefix cache changes no answer: cold, full and partial hits, after eviction, and across dense_len."""

import pytest

from tests.serving.client import generate, random_prompt

pytestmark = pytest.mark.usefixtures("empty_cache")
TOLERANCE = 1e-4  # as in test_equality
NEW_TOKENS = 4
PAGE, CHUNK, SPACING = 64, 128, 384
SELECTED_TOKENS, DENSE_LEN = 384, 512  # of the tiny checkpoint
POOL_TOKENS = 4096


@pytest.fixture(scope="module")
def server(start_server):
    arguments = (
        f"--dtype float32 --chunked-prefill-size {CHUNK} --max-running-requests 4 --max-mamba-cache-size 40 "
        f"--max-total-tokens {POOL_TOKENS}"
    )
    with start_server(*arguments.split(), environment={"SALA_SNAPSHOT_SPACING": str(SPACING)}) as running:
        yield running


@pytest.fixture(scope="module")
def ask(server, oracle):
    """A function that asks, compares the answer with the oracle's and returns (cached tokens, generated tokens)."""

    def ask_and_check(prompt: list[int], tokens: int = NEW_TOKENS) -> tuple[int, list[int]]:
        answer, meta = generate(server, prompt, tokens)
        oracle.check(prompt, answer, TOLERANCE)
        return meta["cached_tokens"], answer.tokens

    return ask_and_check


def tokens(length: int, seed: int) -> list[int]:
    return random_prompt(length, 500, seed)


def test_a_pool_smaller_than_the_context_is_said(server):
    assert f"KV pages for {POOL_TOKENS} tokens are fewer than the context of" in server.log


@pytest.mark.parametrize("length", [63, 64, 65, 129, 500, 1000])
def test_full_hit(ask, length):
    prompt = tokens(length, seed=1)
    cold, answer = ask(prompt)
    cached, again = ask(prompt)
    # The last token is always computed, for its logits, and a snapshot needs a page of new tokens.
    assert (cold, cached, answer) == (0, (length - 1) // PAGE * PAGE, again)


@pytest.mark.parametrize("common", [1, 64, 100, 130, 200, 385, 450, 513, 700, 901])
def test_partial_hit(ask, common):
    """Prompts part inside compression windows and pages; a hit ends at a snapshot before that."""
    first = tokens(1000, seed=2)
    ask(first)
    cached, _ = ask(first[:common] + tokens(1100, seed=3)[common:])
    assert cached == common // SPACING * SPACING


def test_branching_points_get_a_snapshot(ask):
    common = tokens(600, seed=4)
    hits = [ask(common + tokens(300, seed))[0] for seed in (5, 6, 7)]
    # The first leaves some on its way, the second one where it left the first, at the last page before it.
    assert hits == [0, 600 // SPACING * SPACING, 600 // PAGE * PAGE]


def test_next_turn_of_a_conversation(ask):
    prompt = tokens(700, seed=8)
    for seed in (9, 10, 11):
        _, answer = ask(prompt, 70)
        begun = len(prompt)
        prompt = prompt + answer + tokens(20, seed)
        cached, _ = ask(prompt)
        assert cached >= begun // PAGE * PAGE - PAGE


@pytest.mark.parametrize(("first", "second"), [(500, 900), (900, 500), (511, 512), (512, 511)])
def test_dense_and_sparse_prompts_share_what_is_equal(ask, first, second):
    """Below 512 tokens a prompt is dense; behind the 384th it differs from a sparse one with the same beginning."""
    text = tokens(1000, seed=12)
    ask(text[:first])
    cached, _ = ask(text[:second])
    assert cached == SELECTED_TOKENS


def test_next_turn_behind_dense_len(ask):
    prompt = tokens(500, seed=13)
    _, answer = ask(prompt, 60)  # generated across dense_len after a dense prompt
    cached, _ = ask(prompt + answer + tokens(50, seed=14))
    assert cached == SELECTED_TOKENS


def test_hit_after_eviction(ask):
    prompt = tokens(900, seed=15)
    _, cold = ask(prompt)
    for seed in range(16, 22):  # more than the pool holds
        ask(tokens(POOL_TOKENS // 4, seed))
    cached, again = ask(prompt)
    assert cached < 900 // PAGE * PAGE and again == cold


def test_snapshots_run_out_before_pages(ask):
    """Each prompt leaves states; 40 of them are far fewer than the pages could use."""
    prompts = [tokens(200, seed) for seed in range(30, 60)]
    for prompt in [*prompts, *prompts]:
        ask(prompt, 1)
