"""Speculation on a GPU: graphs equal eager steps and the plain model's answers, with overlap scheduling and without."""

from pathlib import Path

import pytest
import torch

from testing.draft_models import make_dense, make_head
from tests.serving.client import all_at_once, complete, random_prompt
from tests.serving.oracle import Oracle, RoundedOracle

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


MODEL_OPTIONS = {
    "graphs, overlap": "",
    "graphs, no overlap": "--disable-overlap-schedule",
    "eager, overlap": NO_GRAPHS,
    "six rows": "--speculative-num-steps 5",
    "flashinfer": "--speculative-draft-attention-backend flashinfer",
    "triton": "--speculative-draft-attention-backend triton",
}


@pytest.fixture(scope="module")
def models(tiny_checkpoint, tmp_path_factory) -> dict[str, Path]:
    """Draft models by their algorithm, of a head size that every attention has."""
    out = tmp_path_factory.mktemp("models")
    return {
        "EAGLE3": make_head(tiny_checkpoint, out / "head", [0, 2, 4], 250, head_dim=64),
        "STANDALONE": make_dense(tiny_checkpoint, out / "dense", head_dim=64),
    }


def draft_model(models: dict[str, Path], algorithm: str) -> list[str]:
    return f"--speculative-algorithm {algorithm} --speculative-draft-model-path {models[algorithm]}".split()


@pytest.mark.parametrize("algorithm", ["EAGLE3", "STANDALONE"])
@pytest.mark.parametrize("options", MODEL_OPTIONS.values(), ids=MODEL_OPTIONS)
def test_answers_with_a_draft_model_are_the_plain_model_s(start_server, tiny_checkpoint, models, algorithm, options):
    """In bfloat16, since SGLang's norm of draft models has no float32 on a GPU."""
    prompts = [random_prompt(length, 500, seed=4) for length in LENGTHS]
    arguments = "--chunked-prefill-size 256 --max-running-requests 8", options
    with start_server(*draft_model(models, algorithm), *" ".join(arguments).split()) as server:
        answers = [complete(server.client, prompt, NEW_TOKENS) for prompt in prompts]
        answers += all_at_once(complete, server.client, prompts, NEW_TOKENS)
        following = [prompt + answer.tokens + [5] for prompt, answer in zip(prompts, answers, strict=False)]
        answers += [complete(server.client, prompt, 5) for prompt in following]
        assert not any(server.idle_counters().values())
    assert all(len(answer.tokens) == NEW_TOKENS for answer in answers[: len(prompts) * 2])
    RoundedOracle(tiny_checkpoint).check(prompts * 2 + following, answers)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("algorithm", ["EAGLE3", "STANDALONE"])
def test_draft_models_on_two_ranks(start_server, tiny_checkpoint, models, algorithm):
    prompts = [random_prompt(length, 500, seed=6) for length in LENGTHS]
    with start_server(*draft_model(models, algorithm), "--tp-size", "2") as server:
        answers = all_at_once(complete, server.client, prompts, NEW_TOKENS)
    RoundedOracle(tiny_checkpoint).check(prompts, answers)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_ranks(start_server, tiny_checkpoint):
    oracle = Oracle(tiny_checkpoint)
    prompts = [repeating_prompt(length, seed=3) for length in LENGTHS]
    with start_server(*SPECULATION.split(), "--tp-size", "2") as server:
        answers = all_at_once(complete, server.client, prompts, NEW_TOKENS)
    for prompt, answer in zip(prompts, answers, strict=True):
        oracle.check(prompt, answer, TOLERANCE)
