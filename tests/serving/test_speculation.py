"""Speculation changes no answer, however good the drafts are, and accepts as many as are right."""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from testing.injected_drafts import VARIABLE
from testing.server import POLL_SECONDS, Server
from tests.serving.client import all_at_once, chat_prompt, complete, generate, random_prompt, requests_inside, stream
from tests.serving.oracle import Answer

pytestmark = pytest.mark.usefixtures("empty_cache")
TOLERANCE = 1e-4  # as in test_equality
INJECTED = "-m", "testing.injected_drafts"
ROWS = 5
VOCABULARY = 400
POOL_TOKENS, CONTEXT_TOKENS = 2048, 1200
NEW_TOKENS = 45
# Answers across a compression window, a page, a snapshot and dense_len (512), in and behind the first page.
LENGTHS = (1, 40, 230, 440, 490, 700)
ATTEMPTS = 10
DECODES = "Decode batch"


class Drafts:
    """The file of injected drafts, which the server always finds whole."""

    def __init__(self, path: Path):
        self.path = path
        self.write()

    def write(self, right: int | None = 0, verify: bool = True, texts: list[list[int]] | None = None) -> None:
        written = self.path.with_suffix(".new")
        written.write_text(json.dumps({"right": right, "verify": verify, "texts": texts or []}))
        written.replace(self.path)


@pytest.fixture(scope="module")
def drafts(tmp_path_factory) -> Drafts:
    return Drafts(tmp_path_factory.mktemp("drafts") / "drafts.json")


@pytest.fixture(scope="module")
def server(start_server, drafts):
    arguments = (
        f"--speculative-algorithm ngram --speculative-num-draft-tokens {ROWS} --dtype float32 "
        f"--chunked-prefill-size 256 --max-running-requests 6 --max-total-tokens {POOL_TOKENS} "
        f"--context-length {CONTEXT_TOKENS}"
    )
    # SGLang admits requests as if they would generate 8 tokens at most, so the pool overflows in the middle.
    environment = {"SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "8", VARIABLE: str(drafts.path)}
    with start_server(*arguments.split(), environment=environment, program=INJECTED) as running:
        yield running


@pytest.fixture(scope="module")
def answers(server, drafts, oracle) -> dict[int, tuple[list[int], Answer]]:
    """Prompts and their answers by length, from steps of one row, which are the oracle's."""
    drafts.write(verify=False)
    found = {}
    for length in LENGTHS:
        prompt = random_prompt(length, VOCABULARY, seed=1)
        answer, meta = generate(server, prompt, NEW_TOKENS)
        oracle.check(prompt, answer, TOLERANCE)
        assert meta["spec_num_correct_drafts"] == 0 and meta["spec_verify_ct"] == NEW_TOKENS - 1
        found[length] = prompt, answer
    return found


def texts_of(answers) -> list[list[int]]:
    return [prompt + answer.tokens for prompt, answer in answers.values()]


def assert_same(given: Answer, expected: Answer, tolerance: float = TOLERANCE) -> None:
    assert given.tokens == expected.tokens
    assert max(abs(a - b) for a, b in zip(given.logprobs, expected.logprobs, strict=True)) <= tolerance


@pytest.mark.parametrize("right", range(ROWS))
def test_right_until_some_row(server, drafts, answers, right):
    """0: always wrong; ROWS − 1: always right. Every step accepts the right ones and one token more."""
    drafts.write(right, texts=texts_of(answers))
    for prompt, expected in answers.values():
        answer, meta = generate(server, prompt, NEW_TOKENS)
        assert_same(answer, expected)
        assert meta["spec_verify_ct"] == math.ceil((NEW_TOKENS - 1) / (right + 1)), len(prompt)


def test_random_drafts(server, drafts, answers):
    drafts.write(None, texts=texts_of(answers))
    for prompt, expected in answers.values():
        assert_same(generate(server, prompt, NEW_TOKENS)[0], expected)


@pytest.mark.parametrize("right", [0, 2, ROWS - 1])
def test_six_at_once_streamed(server, drafts, answers, right):
    drafts.write(right, texts=texts_of(answers))
    prompts = [prompt for prompt, _ in answers.values()]
    given = all_at_once(stream, server.client, prompts, NEW_TOKENS)
    for answer, (_, expected) in zip(given, answers.values(), strict=True):
        assert_same(answer, expected)


@pytest.mark.parametrize("right", [1, ROWS - 1])
def test_next_turns_on_pages_and_snapshots_that_verify_steps_wrote(server, drafts, oracle, right):
    """The first answer crosses 256 tokens, where a verify step leaves a snapshot behind one of its rows."""
    prompt = random_prompt(200, VOCABULARY, seed=2)
    for seed in (3, 4):
        drafts.write(verify=False)
        answer, _ = generate(server, prompt, 120)
        drafts.write(right, texts=[prompt + answer.tokens])
        server.flush_cache()
        again, _ = generate(server, prompt, 120)
        assert_same(again, answer)
        of_prefill = len(prompt) // 64 * 64
        prompt = prompt + answer.tokens + random_prompt(20, VOCABULARY, seed)
        following, meta = generate(server, prompt, 5)
        oracle.check(prompt, following, TOLERANCE)
        assert meta["cached_tokens"] == max(of_prefill, len(prompt) // 256 * 256)


@pytest.mark.parametrize("right", [0, 3, ROWS - 1])
def test_end_of_the_context(server, drafts, oracle, right):
    """Rows of drafts lie behind the last position there is."""
    prompt = random_prompt(CONTEXT_TOKENS - 30, VOCABULARY, seed=5)
    drafts.write(verify=False)
    expected = complete(server.client, prompt, 30)
    assert len(expected.tokens) >= 28, "SGLang leaves the last positions free"
    oracle.check(prompt, expected, TOLERANCE)
    drafts.write(right, texts=[prompt + expected.tokens + [7] * ROWS])
    assert_same(complete(server.client, prompt, 30), expected)


def test_single_rows_and_chains_in_turn(server, drafts, answers):
    """Other requests join in while steps change their width."""
    prompts = [prompt for prompt, _ in answers.values()]
    drafts.write(2, texts=texts_of(answers))
    with ThreadPoolExecutor(len(prompts)) as pool:
        asked = [pool.submit(generate, server, prompt, NEW_TOKENS) for prompt in prompts]
        # On one rank the file may change at any time.
        while not all(one.done() for one in asked):
            for verify in (False, True):
                drafts.write(2, verify, texts_of(answers))
                time.sleep(POLL_SECONDS / 4)
    for one, (_, expected) in zip(asked, answers.values(), strict=True):
        assert_same(one.result()[0], expected)


def test_stop_within_accepted_drafts(server, drafts, answers):
    """What was accepted behind the end is not served, and the pages' next user finds the right states."""
    prompt, expected = answers[230]
    end = next(i for i, token in enumerate(expected.tokens) if i > 10 and expected.tokens.index(token) == i)
    drafts.write(ROWS - 1, texts=texts_of(answers))
    for _ in range(2):
        stop = {"stop_token_ids": [expected.tokens[end]], "ignore_eos": False}
        answer, meta = generate(server, prompt, NEW_TOKENS, **stop)
        assert answer.tokens == expected.tokens[: end + 1] and meta["finish_reason"]["type"] == "stop"
        assert_same(generate(server, prompt, NEW_TOKENS)[0], expected)


def test_top_logprobs_of_accepted_drafts(server, drafts, answers, oracle):
    prompt, expected = answers[440]
    drafts.write(2, texts=texts_of(answers))
    body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 20, "temperature": 0, "ignore_eos": True}}
    meta = server.post("/generate", body | {"return_logprob": True, "top_logprobs_num": 3})["meta_info"]
    best = oracle.logprobs(prompt, expected.tokens[:20]).topk(3)
    for row, values in zip(meta["output_top_logprobs"], best.values.tolist(), strict=True):
        assert [value for value, *_ in row] == pytest.approx(values, abs=TOLERANCE)


def test_grammar(server, drafts, answers):
    """Drafts that the grammar forbids are wrong ones; drafts that it allows are accepted."""
    prompt, _ = answers[40]
    pattern = {"regex": r"[a-c]{12}"}
    drafts.write(verify=False)
    expected = generate(server, prompt, 30, ignore_eos=False, **pattern)[0]
    for right in (0, 2, ROWS - 1):
        drafts.write(right, texts=[prompt + expected.tokens])
        answer, meta = generate(server, prompt, 30, ignore_eos=False, **pattern)
        assert answer.tokens == expected.tokens
        assert (meta["spec_num_correct_drafts"] > 0) == (right > 0)


def test_abort_in_the_middle(server, drafts):
    drafts.write(None)
    body = {"input_ids": random_prompt(200, VOCABULARY, 5), "sampling_params": {"max_new_tokens": 900}}
    body["sampling_params"]["ignore_eos"] = True
    for _ in range(ATTEMPTS):
        with ThreadPoolExecutor(2) as pool:
            before = server.log.count(DECODES)
            asked = [pool.submit(server.post, "/generate", body) for _ in range(2)]
            while requests_inside(server) < 2 or server.log.count(DECODES) == before:
                if any(one.done() for one in asked):
                    break
                time.sleep(POLL_SECONDS / 10)
            server.client.post(f"{server.base_url}/abort_request", body={"rid": "", "abort_all": True}, cast_to=object)
        ends = [one.result()["meta_info"]["finish_reason"]["type"] for one in asked]
        if ends == ["abort"] * 2:
            return
    pytest.fail(f"{ATTEMPTS} times a request had ended before it was aborted")


@pytest.mark.parametrize("right", [1, ROWS - 1])
def test_retraction_changes_no_answer(server, drafts, oracle, right):
    """Requests outgrow the pool together; some are prefilled again with what had been accepted."""
    for attempt in range(ATTEMPTS):
        prompts = [random_prompt(300, VOCABULARY, seed) for seed in range(20 + 6 * attempt, 26 + 6 * attempt)]
        drafts.write(verify=False)
        expected = [generate(server, prompt, 130)[0] for prompt in prompts]
        oracle.check(prompts[0], expected[0], TOLERANCE)
        drafts.write(right, texts=[p + answer.tokens for p, answer in zip(prompts, expected, strict=True)])
        given = all_at_once(generate, server, prompts, 130)
        for (answer, _), right_answer in zip(given, expected, strict=True):
            assert_same(answer, right_answer)
        if sum(meta["num_retractions"] for _, meta in given):
            return
    pytest.fail(f"{ATTEMPTS} times no request was retracted")


SAMPLES, SAMPLED_TOKENS = 256, 3
# A sum of squares of seven independent normal deviates exceeds this once in 10⁷ times.
CHI_SQUARE_BOUND = 45.7


@pytest.mark.parametrize("right", [1, ROWS - 1])
def test_sampled_answers_have_the_model_s_distribution(server, drafts, oracle, right):
    """Of the two likeliest tokens at every step, after a draft that is one of them: eight answers, by chi-square."""
    prompt = random_prompt(70, VOCABULARY, seed=9)
    probabilities = {}
    greedy: list[int] = []
    for first in range(2):
        for second in range(2):
            for third in range(2):
                tokens, probability = [], 1.0
                for choice in (first, second, third):
                    best = oracle.logprobs(prompt, [*tokens, 0])[-1].topk(2)
                    probability *= float(torch.softmax(best.values, 0)[choice])
                    tokens.append(int(best.indices[choice]))
                probabilities[tuple(tokens)] = probability
                greedy = greedy or tokens
    drafts.write(right, texts=[prompt + greedy])
    sampling = {"max_new_tokens": SAMPLED_TOKENS, "temperature": 1.0, "top_k": 2, "ignore_eos": True, "n": SAMPLES}
    given = server.post("/generate", {"input_ids": prompt, "sampling_params": sampling})
    counts = dict.fromkeys(probabilities, 0)
    for answer in given:
        counts[tuple(answer["output_ids"])] += 1
    squares = [(counts[key] - SAMPLES * p) ** 2 / (SAMPLES * p) for key, p in probabilities.items()]
    assert min(probabilities.values()) * SAMPLES > 5, "too few of each for the bound"
    assert sum(squares) < CHI_SQUARE_BOUND, counts
    assert any(answer["meta_info"]["spec_num_correct_drafts"] for answer in given)


REFUSED_FIELDS = {"min_p": 0.1, "frequency_penalty": 0.5, "presence_penalty": 0.5, "repetition_penalty": 1.2}


@pytest.mark.parametrize(("field", "value"), [*REFUSED_FIELDS.items(), ("min_new_tokens", 3)])
def test_fields_that_verification_blurs_are_refused(server, field, value):
    body = {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 4, field: value}}
    with pytest.raises(OSError) as refusal:
        server.post("/generate", body)
    assert refusal.value.code == 400
    assert f"{field} = {value} is not supported with speculative decoding" in refusal.value.read().decode()


@pytest.fixture(scope="module")
def two_ranks(start_server, drafts):
    arguments = f"--speculative-algorithm NGRAM --speculative-num-draft-tokens {ROWS} --dtype float32 --tp-size 2"
    with start_server(*arguments.split(), environment={VARIABLE: str(drafts.path)}, program=INJECTED) as running:
        yield running


def test_two_ranks(two_ranks, drafts, answers):
    for right in (0, 2, ROWS - 1):
        drafts.write(right, texts=texts_of(answers))
        prompts = [prompt for prompt, _ in answers.values()]
        given = all_at_once(generate, two_ranks, prompts, NEW_TOKENS)
        for (answer, _), (_, expected) in zip(given, answers.values(), strict=True):
            assert_same(answer, expected)
    assert not any(two_ranks.idle_counters().values())


def test_prompt_lookup_on_text(trained_server, trained_checkpoint):
    """With D as by default, on text that repeats its prompt: answers of the plain server, in fewer steps."""
    text = "Text: The baker sings a song. The code of the red fox is 4711. The code of the shy owl is 2093."
    prompt = chat_prompt(trained_checkpoint, f"{text}\n\nWhat are the codes of the red fox and the shy owl?")
    plain, _ = generate(trained_server, prompt, 60, ignore_eos=False)
    arguments = "--speculative-algorithm NGRAM --dtype float32 --max-running-requests 4"
    with Server(trained_checkpoint, *arguments.split()) as server:
        answer, meta = generate(server, prompt, 60, ignore_eos=False)
        assert_same(answer, plain)
        assert meta["spec_accept_length"] > 1.5
        assert not any(server.idle_counters().values())
        gauges = server.gauges()
        assert gauges["spec_accept_length"] >= 1 and "accept len: " in server.log
