"""Two pipeline stages answer as one does, bit by bit; nothing leaks on either, and neither outlives the other."""

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sala_sglang.checkpoint.make import make_checkpoint
from testing.server import ANSWER_SECONDS
from tests.serving.client import all_at_once, complete, generate, random_prompt, requests_inside, stream
from tests.serving.oracle import Oracle

TOLERANCE = 1e-4  # as in test_equality, for what is computed in batches
POOL_TOKENS = 1536
ARGUMENTS = f"--dtype float32 --chunked-prefill-size 256 --max-running-requests 6 --max-total-tokens {POOL_TOKENS}"
# SGLang admits requests as if they would generate 8 tokens at most, so the pool overflows in the middle.
ADMIT_TOO_MANY = {"SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "8"}
LENGTHS = 1, 100, 385, 513, 1200  # dense, and sparse in chunks that follow each other through the stages
STAGES = 2
DECODES = "Decode batch"
ATTEMPTS = 10


def prompt_of(length: int) -> list[int]:
    return random_prompt(length, 500, seed=1)


def whole_answers(server) -> list:
    """Tokens, their log-probabilities and those of the prompt, of prompts of all LENGTHS one after the other."""
    sampling = {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True}
    body = {"sampling_params": sampling, "return_logprob": True, "logprob_start_len": 0}
    answers = [generate(server, prompt_of(length), 6)[0] for length in LENGTHS]
    server.flush_cache()
    scored = [server.post("/generate", body | {"input_ids": prompt_of(length)}) for length in LENGTHS]
    return [answers, [answer["meta_info"]["input_token_logprobs"] for answer in scored]]


@pytest.fixture(scope="module")
def of_one_stage(start_server):
    with start_server(*ARGUMENTS.split()) as running:
        return whole_answers(running)


@pytest.fixture(scope="module")
def server(start_server):
    arguments = f"{ARGUMENTS} --pp-size {STAGES}"
    with start_server(*arguments.split(), environment=ADMIT_TOO_MANY) as running:
        yield running


@pytest.fixture
def nothing_leaks(server):
    yield
    assert server.is_running()
    counters = server.idle_counters()
    assert not any(counters.values()), counters


def test_answers_are_those_of_one_stage(of_one_stage, server, nothing_leaks):
    assert whole_answers(server) == of_one_stage


def test_a_stream_is_the_whole_answer(server, nothing_leaks):
    assert stream(server.client, prompt_of(100), 6) == complete(server.client, prompt_of(100), 6)


def test_prefix_cache(server, oracle, nothing_leaks):
    """Pages, compressed keys and snapshots of both stages serve the same prompt again, and a longer one."""
    server.flush_cache()
    prompt, hits = random_prompt(700, 500, seed=3), []
    for text in (prompt, prompt, prompt + random_prompt(150, 500, seed=4)):
        answer, meta = generate(server, text, 6)
        oracle.check(text, answer, TOLERANCE)
        hits.append(meta["cached_tokens"])
    assert hits == [0, 640, 640]


def test_decode_in_batches_across_dense_len(server, oracle, nothing_leaks):
    prompts = [random_prompt(length, 500, seed=2) for length in (70, 140, 200, 300)]
    for prompt, (answer, _) in zip(prompts, all_at_once(generate, server, prompts, 80), strict=True):
        oracle.check(prompt, answer, TOLERANCE)


def test_a_grammar_is_followed(server, nothing_leaks):
    text = server.post("/generate", {"text": "one", "sampling_params": {"max_new_tokens": 8, "regex": "[ab]{4}"}})[
        "text"
    ]
    assert len(text) == 4 and set(text) <= set("ab")


def test_abort_of_everything(server, nothing_leaks):
    body = {"input_ids": random_prompt(200, 400, 5), "sampling_params": {"max_new_tokens": 900, "ignore_eos": True}}
    for _ in range(ATTEMPTS):
        with ThreadPoolExecutor(3) as pool:
            answers = [pool.submit(server.post, "/generate", body) for _ in range(3)]
            while not requests_inside(server) and not any(answer.done() for answer in answers):
                time.sleep(0.02)
            time.sleep(1)  # SGLang counts one of the batches that follow each other through the stages
            server.client.post(f"{server.base_url}/abort_request", body={"rid": "", "abort_all": True}, cast_to=object)
        if [answer.result()["meta_info"]["finish_reason"]["type"] for answer in answers] == ["abort"] * 3:
            return
    pytest.fail(f"{ATTEMPTS} times an answer was whole before it could be aborted")


def test_retraction_changes_no_answer(server, oracle, nothing_leaks):
    """The requests outgrow the pool together; some are retracted and prefilled again with what they had generated."""
    requests, length, new_tokens = 6, 100, 220
    assert requests * (length + new_tokens) > POOL_TOKENS
    for attempt in range(ATTEMPTS):
        prompts = [random_prompt(length, 500, seed=20 + requests * attempt + index) for index in range(requests)]
        answers = all_at_once(generate, server, prompts, new_tokens)
        for prompt, (answer, _) in zip(prompts, answers, strict=True):
            assert len(answer.tokens) == new_tokens
            oracle.check(prompt, answer, TOLERANCE)
        if sum(meta["num_retractions"] for _, meta in answers) > 0:
            return
    pytest.fail(f"{ATTEMPTS} times no request was retracted")


def test_weights_are_replaced_on_all_stages(server, tmp_path, nothing_leaks):
    make_checkpoint("tiny", tmp_path / "other", seed=1)
    answer = server.post("/update_weights_from_disk", {"model_path": str(tmp_path / "other"), "load_format": "auto"})
    assert answer["success"], answer
    other = Oracle(tmp_path / "other")
    for length in (100, 600):
        prompt = random_prompt(length, 500, seed=6)
        other.check(prompt, complete(server.client, prompt, 6), TOLERANCE)


def test_a_killed_stage_ends_the_server(server):
    """The last test, since nothing is left after it. A request that is running gets an error, and nobody waits."""
    with ThreadPoolExecutor(1) as pool:
        before = server.log.count(DECODES)  # what SGLang says of its load comes too late with stages
        running = pool.submit(generate, server, random_prompt(100, 500, seed=7), 1000)
        while server.log.count(DECODES) == before:
            assert not running.done(), running.result()
            time.sleep(0.02)
        os.kill(process_of_stage(server, STAGES - 1), signal.SIGKILL)
        assert server.process.wait(ANSWER_SECONDS) != 0
        assert running.exception(ANSWER_SECONDS) is not None
    assert re.search("Connection closed by peer|crashed with exit code", server.log)  # whoever notices first


def process_of_stage(server, stage: int) -> int:
    """The number of the process that runs a stage, by the title that SGLang gives it."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            of_server = os.getsid(int(folder.name)) == server.process.pid
            title = (folder / "cmdline").read_text()
        except (OSError, UnicodeDecodeError):
            continue  # it has ended by now
        if of_server and f"scheduler_PP{stage}" in title:
            return int(folder.name)
    pytest.fail(f"no process runs stage {stage}")
