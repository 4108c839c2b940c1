"""What left the device comes back from host memory and changes no answer: whole hits, partial ones, many at once."""

import itertools

import pytest
import torch

from tests.serving.client import all_at_once, generate, random_prompt

pytestmark = pytest.mark.usefixtures("empty_cache")
# As in test_equality, and on a GPU as in test_gpu.
TOLERANCE = 1e-3 if torch.cuda.is_available() else 1e-4
NEW_TOKENS = 4
PAGE, SPACING, SELECTED_TOKENS = 64, 384, 384
POOL_TOKENS, HOST_RATIO = 4096, 2
ARGUMENTS = (
    f"--dtype float32 --chunked-prefill-size 128 --max-running-requests 4 --max-mamba-cache-size 40 "
    f"--max-total-tokens {POOL_TOKENS} --enable-hierarchical-cache --hicache-ratio {HOST_RATIO} "
)
DIRECT = "--hicache-io-backend direct --hicache-mem-layout page_first_direct "
SERVERS: dict[str, tuple[str, tuple[pytest.MarkDecorator, ...]]] = {
    "cpu": (DIRECT, ()),
    "cpu, two stages": (DIRECT + "--pp-size 2", ()),
    "cpu, write back": (DIRECT + "--hicache-write-policy write_back", ()),
    "gpu, direct": (DIRECT, (pytest.mark.gpu,)),
    "gpu, kernel": ("", (pytest.mark.gpu,)),
}


@pytest.fixture(scope="module", params=[pytest.param(text, id=name, marks=m) for name, (text, m) in SERVERS.items()])
def server(start_server, request):
    arguments = (ARGUMENTS + request.param).split()
    with start_server(*arguments, environment={"SALA_SNAPSHOT_SPACING": str(SPACING)}) as running:
        yield running


@pytest.fixture(scope="module")
def ask(server, oracle):
    """A function that asks, checks the answer and returns (cached tokens on the device, on the host, answer)."""

    def ask_and_check(prompt: list[int], tokens: int = NEW_TOKENS) -> tuple[int, int, list[int]]:
        answer, meta = generate(server, prompt, tokens)
        oracle.check(prompt, answer, TOLERANCE)
        return *cached_tokens(meta), answer.tokens

    return ask_and_check


@pytest.fixture(scope="module")
def fill_device(server):
    """A function that asks for more than the device's pool holds, so that nothing of before stays there."""
    seeds = itertools.count(1000)

    def fill() -> None:
        for seed in itertools.islice(seeds, 5):
            generate(server, tokens(POOL_TOKENS // 4, seed), 1)

    return fill


def cached_tokens(meta: dict) -> tuple[int, int]:
    """Tokens of a request's prompt found on the device and on the host."""
    details = meta["cached_tokens_details"] or {"device": 0, "host": 0}
    assert meta["cached_tokens"] == details["device"] + details["host"]
    return details["device"], details["host"]


def tokens(length: int, seed: int) -> list[int]:
    return random_prompt(length, 500, seed)


@pytest.mark.parametrize("length", [129, 500, 900])
def test_document_comes_back_from_the_host(ask, fill_device, length):
    """Dense and sparse prompts; the last tokens are computed from what came back."""
    prompt = tokens(length, seed=1)
    *cold, answer = ask(prompt)
    fill_device()
    *cached, again = ask(prompt)
    assert (cold, cached, again) == ([0, 0], [0, (length - 1) // PAGE * PAGE], answer)


@pytest.mark.parametrize("common", [100, 450, 800])
def test_hit_ends_in_the_middle(ask, fill_device, common):
    """A document that parts from the one on the host: it starts from the last snapshot before that."""
    document = tokens(900, seed=2)
    ask(document)
    fill_device()
    other = document[:common] + tokens(1000, seed=3)[common:]
    assert ask(other)[:2] == (0, common // SPACING * SPACING)


def test_beginning_on_the_device_and_rest_on_the_host(ask, fill_device):
    document = tokens(900, seed=4)
    ask(document)
    fill_device()
    ask(document[:450] + tokens(600, seed=5)[450:])  # brings back the first snapshot, and computes the rest of 450
    assert ask(document)[:2] == (450 // PAGE * PAGE, 900 // PAGE * PAGE - 450 // PAGE * PAGE)


def test_dense_and_sparse_prompts_stay_apart(ask, fill_device):
    text = tokens(1000, seed=6)
    ask(text[:500])
    fill_device()
    assert ask(text[:900])[:2] == (0, SELECTED_TOKENS)


def test_next_turn_of_a_conversation(ask, fill_device):
    prompt = tokens(700, seed=7)
    for seed in (8, 9):
        *_, answer = ask(prompt, 70)
        begun = len(prompt)
        prompt = prompt + answer + tokens(20, seed)
        fill_device()
        device, host, _ = ask(prompt)
        assert device == 0 and host >= begun // PAGE * PAGE - PAGE


def test_many_at_once(server, oracle, ask, fill_device):
    documents = [tokens(length, seed=10) for length in (200, 450, 600, 900)]
    for document in documents:
        ask(document)
    fill_device()
    results = all_at_once(generate, server, documents, NEW_TOKENS)
    for document, (answer, _) in zip(documents, results, strict=True):
        oracle.check(document, answer, TOLERANCE)
    assert sum(cached_tokens(meta)[1] for _, meta in results) > 0


def test_more_than_the_host_holds(ask):
    """Twice what fits into both pools: the host forgets, and answers stay right."""
    prompts = [tokens(1000, seed) for seed in range(20, 20 + 2 * (1 + HOST_RATIO) * POOL_TOKENS // 1000)]
    for prompt in prompts:
        ask(prompt, 1)
    assert ask(prompts[0], 1)[:2] == (0, 0)
    assert ask(prompts[-7], 1)[1] > 0
