"""On a GPU: the tiny checkpoint gives its CPU answers, the full size serves, and graphs change nothing."""

import math
import os
from pathlib import Path

import pytest

from sala_sglang.checkpoint.make import make_checkpoint
from testing.server import Server
from tests.serving.client import all_at_once, complete, random_prompt
from tests.serving.oracle import Answer, FP8Oracle, Oracle, RoundedOracle

pytestmark = pytest.mark.gpu

TINY_LENGTHS = (1, 64, 100, 383, 385, 500, 513, 700, 1450)
FULL_LENGTHS = (100, 8191, 8192, 20_000, 131_072)
CONCURRENT_LENGTHS = [64 + 260 * i for i in range(32)]  # up to 8,124 tokens: with their answers across 8,192
FULL_VOCABULARY = 73_000
FP8 = ("--kv-cache-dtype", "fp8_e4m3")
NO_GRAPHS = ("--cuda-graph-backend-decode", "disabled", "--cuda-graph-backend-prefill", "disabled")


@pytest.mark.parametrize("options", [(), ("--dense-as-sparse", *NO_GRAPHS)], ids=["graphs", "sparse, eager"])
def test_tiny_in_float32_equals_the_cpu(start_server, tiny_checkpoint, options):
    oracle = Oracle(tiny_checkpoint, dense_len=0 if "--dense-as-sparse" in options else None)
    prompts = [random_prompt(length, oracle.model.config.vocab_size, seed=1) for length in TINY_LENGTHS]
    with start_server("--dtype", "float32", "--chunked-prefill-size", "256", *options) as server:
        answers = [complete(server.client, prompt, 20) for prompt in prompts]
        answers += all_at_once(complete, server.client, prompts, 20)
    for prompt, answer in zip(prompts * 2, answers, strict=True):
        oracle.check(prompt, answer, tolerance=1e-3)


def test_tiny_with_keys_and_values_in_fp8(start_server, tiny_checkpoint):
    """The bound is twice that on a CPU: another order of sums moves other numbers over the middle between two."""
    oracle = FP8Oracle(tiny_checkpoint)
    prompts = [random_prompt(length, oracle.model.config.vocab_size, seed=1) for length in TINY_LENGTHS]
    with start_server(*FP8, "--dtype", "float32", "--chunked-prefill-size", "256") as server:
        answers = [complete(server.client, prompt, 20) for prompt in prompts]
        answers += all_at_once(complete, server.client, prompts, 20)
    for prompt, answer in zip(prompts * 2, answers, strict=True):
        oracle.check(prompt, answer, tolerance=4e-3)


def test_memory_given_back_and_taken_again_changes_no_answer(start_server, tiny_checkpoint):
    """As a trainer does between its steps; weights and buffers come back from the host, caches empty."""
    prompts = [random_prompt(length, 500, seed=3) for length in TINY_LENGTHS]
    with start_server("--enable-memory-saver", "--enable-weights-cpu-backup") as server:
        before = [complete(server.client, prompt, 20) for prompt in prompts]
        for step in ("release", "resume"):
            server.post(f"/{step}_memory_occupation", {})
        assert [complete(server.client, prompt, 20) for prompt in prompts] == before


def test_tiny_in_bfloat16_is_as_good_as_the_model(start_server, tiny_checkpoint):
    """Errors against float32 stay within a small multiple of those of the plain bfloat16 model."""
    oracle = RoundedOracle(tiny_checkpoint)
    prompts = [random_prompt(length, 500, seed=2) for length in TINY_LENGTHS]
    with start_server("--chunked-prefill-size", "256") as server:
        oracle.check(prompts, [complete(server.client, prompt, 8) for prompt in prompts])


@pytest.fixture(scope="module")
def full_checkpoint(tmp_path_factory) -> Path:
    """Random weights at full size (19 GB); SALA_FULL_CHECKPOINT names a directory that has them already."""
    if given := os.environ.get("SALA_FULL_CHECKPOINT"):
        return Path(given)
    path = tmp_path_factory.mktemp("full")
    make_checkpoint("full", path / "checkpoint", seed=0)
    return path / "checkpoint"


def serve_full(checkpoint: Path, *options: str) -> tuple[list[Answer], list[Answer], list[Answer]]:
    """Answers to the long prompts alone, to the concurrent prompts alone, and to those all at once."""
    arguments = ["--chunked-prefill-size", "8192", "--max-running-requests", "32", "--mem-fraction-static", "0.85"]
    prompts = [random_prompt(length, FULL_VOCABULARY, seed=1) for length in FULL_LENGTHS]
    batch = [random_prompt(length, FULL_VOCABULARY, seed=2) for length in CONCURRENT_LENGTHS]
    with Server(checkpoint, *arguments, *options) as server:
        long = [complete(server.client, prompt, 16) for prompt in prompts]
        alone = [complete(server.client, prompt, 32) for prompt in batch]
        server.flush_cache()
        together = all_at_once(complete, server.client, batch, 32)
        counters = server.idle_counters()
    assert not any(counters.values()), counters
    return long, alone, together


def disagreement(first: list[Answer], second: list[Answer]) -> list[float]:
    """Largest difference of log-probabilities per pair of answers, over the steps before their tokens part.

    At the parting step the two chosen tokens are different ones, so their log-probabilities may differ by the
    noise that made them part; that step counts too.
    """
    largest = []
    for one, other in zip(first, second, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=True)) if a != b), None)
        steps = len(one.tokens) if same is None else same + 1
        pairs = zip(one.logprobs[:steps], other.logprobs[:steps], strict=True)
        largest.append(max(abs(a - b) for a, b in pairs))
    return largest


@pytest.mark.parametrize("options", [(), FP8], ids=["bfloat16", "keys and values in FP8"])
def test_full_size_serves_and_graphs_change_nothing(full_checkpoint, options):
    """Other batch sizes mean other GEMMs: that noise, measured on the same server, bounds graph against eager."""
    graph_long, graph_alone, graph_together = serve_full(full_checkpoint, *options)
    eager_long, eager_alone, eager_together = serve_full(full_checkpoint, *options, *NO_GRAPHS)
    for answers in (graph_long, graph_alone, graph_together):
        assert all(math.isfinite(logprob) for answer in answers for logprob in answer.logprobs)
    noise = max(disagreement(eager_alone, eager_together))
    assert max(disagreement(graph_alone, graph_together)) <= 2 * noise
    assert max(disagreement(graph_alone, eager_alone)) <= 2 * noise
    assert max(disagreement(graph_long, eager_long)) <= 2 * noise
    assert len({token for answer in graph_long for token in answer.tokens}) > 10
