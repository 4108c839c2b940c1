"""A served answer is the oracle's answer: any chunking, alone or in a batch, streamed or not, cached or not.

On one rank or two, which then have a KV head each; test_tensor_parallel has more ranks than KV heads.
"""

import pytest

from tests.serving.client import all_at_once, complete, generate, random_prompt, stream
from tests.serving.oracle import Oracle

# float32 on both sides: what is left is the order of sums, about 1e-6 in a log-probability. A selection that this
# flips would move it by more than the tolerance; the prompts are fixed, so that a test cannot do so by chance.
TOLERANCE = 1e-4
NEW_TOKENS = 6
# Around a compression window, a page, the number of selected blocks (384 tokens) and dense_len (512).
LENGTHS = (1, 31, 64, 65, 128, 129, 383, 385, 448, 510, 511, 512, 513, 700, 1000, 1450)

PUBLISHED_LINE = (
    "--trust-remote-code --disable-radix-cache --attention-backend minicpm_flashinfer --max-running-requests 32 "
    "--skip-server-warmup --dense-as-sparse"
)
SERVERS = {
    "chunks of 64": "--chunked-prefill-size 64",
    "chunks of 96, published line": f"--chunked-prefill-size 96 {PUBLISHED_LINE}",
    "chunks of 256, mixed, two ranks": "--chunked-prefill-size 256 --enable-mixed-chunk --tp-size 2",
    "unchunked, no overlap": "--chunked-prefill-size -1 --disable-overlap-schedule --dense-as-sparse",
}
# It starts as on a user's machine, where every process imports everything itself.
ANEW = "chunks of 96, published line"


@pytest.fixture(scope="module", params=SERVERS, ids=str)
def server_name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def arguments(server_name) -> list[str]:
    return [*SERVERS[server_name].split(), "--dtype", "float32"]


@pytest.fixture(scope="module")
def server(server_name, arguments, start_server):
    with start_server(*arguments, anew=server_name == ANEW) as running:
        yield running


@pytest.fixture(scope="module")
def oracle(arguments, tiny_checkpoint) -> Oracle:
    return Oracle(tiny_checkpoint, dense_len=0 if "--dense-as-sparse" in arguments else None)


@pytest.fixture(scope="module")
def prompts(oracle) -> list[list[int]]:
    return [random_prompt(length, oracle.model.config.vocab_size, seed=1) for length in LENGTHS]


def test_alone(server, oracle, prompts):
    for prompt in prompts:
        oracle.check(prompt, complete(server.client, prompt, NEW_TOKENS), TOLERANCE)


def test_in_a_batch_streamed(server, oracle, prompts):
    # Reversed lengths: other prompts than in the test above where nothing is cached, hits where it is.
    batch = prompts[::-1] + [random_prompt(200 + 100 * i, oracle.model.config.vocab_size, seed=2) for i in range(6)]
    for prompt, answer in zip(batch, all_at_once(stream, server.client, batch, NEW_TOKENS), strict=True):
        oracle.check(prompt, answer, TOLERANCE)


def test_decode_across_dense_len_and_pages(server, oracle):
    for length in (440, 500):
        prompt = random_prompt(length, oracle.model.config.vocab_size, seed=3)
        oracle.check(prompt, complete(server.client, prompt, 80), TOLERANCE)


def test_shared_prefix(server, oracle):
    vocabulary = oracle.model.config.vocab_size
    prefix = random_prompt(700, vocabulary, seed=4)
    for seed in (5, 6):
        prompt = prefix + random_prompt(150, vocabulary, seed)
        oracle.check(prompt, complete(server.client, prompt, NEW_TOKENS), TOLERANCE)


def test_embeddings_next_to_token_ids(server, oracle, arguments):
    if "--disable-radix-cache" not in arguments:
        pytest.skip("SGLang takes embeddings only where it caches no prefixes")
    embeddings = oracle.model.get_input_embeddings().weight.detach()
    prompts = [random_prompt(length, oracle.model.config.vocab_size, seed=7) for length in (70, 75, 130, 64, 520, 300)]
    given = [embeddings[prompt].tolist() if i % 2 else prompt for i, prompt in enumerate(prompts)]
    for prompt, (answer, _) in zip(prompts, all_at_once(generate, server, given, NEW_TOKENS), strict=True):
        oracle.check(prompt, answer, TOLERANCE)


def test_nothing_is_held_afterwards(server):
    assert not any(server.idle_counters().values()), server.idle_counters()
