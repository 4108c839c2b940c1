"""A draft model changes no answer, however good its drafts are; an EAGLE3 head drafts from the states of its layers."""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from testing.draft_models import CONTEXT_TOKENS, make_dense, make_head
from testing.injected_drafts import VARIABLE
from testing.injected_model_drafts import log_path
from testing.reference_head import ReferenceHead
from testing.server import POLL_SECONDS
from tests.serving.client import all_at_once, complete, generate, random_prompt, stream
from tests.serving.oracle import Answer
from tests.serving.test_speculation import ATTEMPTS, REFUSED_FIELDS, TOLERANCE, Drafts, assert_same, texts_of

pytestmark = pytest.mark.usefixtures("empty_cache")
PROGRAM = "-m", "testing.injected_model_drafts"
ROWS, VOCABULARY, NEW_TOKENS = 4, 400, 45
POOL_TOKENS, SERVED_TOKENS = 2048, 1200
LAYERS, HEAD_VOCABULARY = [0, 2, 4], 250
# Answers across a compression window, a page, a snapshot and dense_len (512); prompts of up to three chunks.
LENGTHS = (1, 40, 230, 490, 700)
OWN = None  # drafts of the model itself, which are as good as random


@pytest.fixture(scope="module")
def drafts(tmp_path_factory) -> Drafts:
    return Drafts(tmp_path_factory.mktemp("drafts") / "drafts.json")


@pytest.fixture(scope="module")
def head(tiny_checkpoint, tmp_path_factory):
    return make_head(tiny_checkpoint, tmp_path_factory.mktemp("models") / "head", LAYERS, HEAD_VOCABULARY)


@pytest.fixture(scope="module")
def dense(tiny_checkpoint, tmp_path_factory):
    return make_dense(tiny_checkpoint, tmp_path_factory.mktemp("models") / "dense")


@pytest.fixture(scope="module", params=["EAGLE3", "STANDALONE"])
def server(request, start_server, drafts, head, dense):
    model = head if request.param == "EAGLE3" else dense
    arguments = (
        f"--speculative-algorithm {request.param} --speculative-draft-model-path {model} "
        f"--speculative-num-steps {ROWS - 1} --dtype float32 "
        f"--chunked-prefill-size 256 --max-running-requests 6 --max-total-tokens {POOL_TOKENS} "
        f"--context-length {SERVED_TOKENS}"
    )
    # SGLang admits requests as if they would generate 8 tokens at most, so the pool overflows in the middle.
    environment = {"SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "8", VARIABLE: str(drafts.path)}
    with start_server(*arguments.split(), environment=environment, program=PROGRAM) as running:
        yield running


@pytest.fixture(scope="module")
def answers(server, drafts, oracle) -> dict[int, tuple[list[int], Answer]]:
    """Prompts and their answers by length, with the model's own drafts; they are the oracle's."""
    drafts.write(OWN)
    found = {}
    for length in LENGTHS:
        prompt = random_prompt(length, VOCABULARY, seed=1)
        answer, meta = generate(server, prompt, NEW_TOKENS)
        oracle.check(prompt, answer, TOLERANCE)
        assert meta["spec_verify_ct"] + meta["spec_num_correct_drafts"] == NEW_TOKENS - 1
        found[length] = prompt, answer
    return found


def test_a_draft_model_goes_on_behind_its_own_context(answers, server):
    assert max(answers) + NEW_TOKENS > CONTEXT_TOKENS
    assert server.get_server_info()["speculative_num_draft_tokens"] == ROWS


@pytest.mark.parametrize("right", range(ROWS))
def test_right_until_some_row(server, drafts, answers, right):
    """0: always wrong; ROWS − 1: always right. Every step accepts the right ones and one token more."""
    drafts.write(right, texts=texts_of(answers))
    for prompt, expected in answers.values():
        answer, meta = generate(server, prompt, NEW_TOKENS)
        assert_same(answer, expected)
        assert meta["spec_verify_ct"] == math.ceil((NEW_TOKENS - 1) / (right + 1)), len(prompt)


@pytest.mark.parametrize("right", [OWN, 2])
def test_five_at_once_streamed(server, drafts, answers, right):
    drafts.write(right, texts=texts_of(answers))
    prompts = [prompt for prompt, _ in answers.values()]
    given = all_at_once(stream, server.client, prompts, NEW_TOKENS)
    for answer, (_, expected) in zip(given, answers.values(), strict=True):
        assert_same(answer, expected)


@torch.no_grad()
def states_of(oracle, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """Outputs of LAYERS [n, layers, hidden]: one pass over the prompt, which is dense or sparse as one, then steps."""
    parts, past = [], None
    for given in (prompt, *([token] for token in tokens)):
        outputs = oracle.model.model(
            torch.tensor([given]), past_key_values=past, use_cache=True, output_hidden_states=True
        )
        past = outputs.past_key_values
        parts.append(torch.stack([outputs.hidden_states[layer + 1][0] for layer in LAYERS], 1))
    return torch.cat(parts)


def test_a_head_drafts_from_the_states_of_its_layers(server, drafts, head, oracle, answers):
    """In every step, whether the last one's drafts were accepted or not: those of a plain head and a plain model."""
    if server.get_server_info()["speculative_algorithm"] != "EAGLE3":
        pytest.skip("a dense model reads no hidden states")
    reference = ReferenceHead(head, oracle.model.model.embed_tokens.weight.detach())
    for length in (40, 490):
        prompt, expected = answers[length]
        drafts.write(OWN)
        log = log_path(drafts.path)
        log.unlink(missing_ok=True)
        server.flush_cache()
        assert_same(generate(server, prompt, NEW_TOKENS)[0], expected)
        steps = [json.loads(line) for line in log.read_text().splitlines()]
        states = states_of(oracle, prompt, expected.tokens)
        assert len(steps) >= NEW_TOKENS // ROWS
        for step in steps:
            known = step["known"]
            assert step["drafts"] == reference.drafts(known, states[: len(known) - 1], ROWS - 1), len(known)


@pytest.mark.parametrize("right", [OWN, 1, ROWS - 1])
def test_next_turns_on_pages_and_snapshots_that_verify_steps_wrote(server, drafts, oracle, right):
    """The first answer crosses 256 tokens, where a verify step leaves a snapshot behind one of its rows."""
    prompt = random_prompt(200, VOCABULARY, seed=2)
    drafts.write(OWN)
    answer, _ = generate(server, prompt, 120)
    oracle.check(prompt, answer, TOLERANCE)
    drafts.write(right, texts=[prompt + answer.tokens])
    server.flush_cache()
    assert_same(generate(server, prompt, 120)[0], answer)
    prompt = prompt + answer.tokens + random_prompt(20, VOCABULARY, seed=3)
    following, meta = generate(server, prompt, 20)
    oracle.check(prompt, following, TOLERANCE)
    assert meta["cached_tokens"] == 256


@pytest.mark.parametrize("right", [OWN, ROWS - 1])
def test_end_of_the_context(server, drafts, oracle, right):
    """Rows of drafts, and steps of the draft model, lie behind the last position there is.

    With a head SGLang keeps as many positions free.
    """
    free = ROWS if server.get_server_info()["speculative_algorithm"] == "EAGLE3" else 0
    prompt = random_prompt(SERVED_TOKENS - 30 - free, VOCABULARY, seed=5)
    drafts.write(0)
    expected = complete(server.client, prompt, 30)
    oracle.check(prompt, expected, TOLERANCE)
    drafts.write(right, texts=[prompt + expected.tokens + [7] * ROWS])
    assert_same(complete(server.client, prompt, 30), expected)


def test_stop_and_logprobs_within_accepted_drafts(server, drafts, answers, oracle):
    prompt, expected = answers[230]
    end = next(i for i, token in enumerate(expected.tokens) if i > 10 and expected.tokens.index(token) == i)
    drafts.write(ROWS - 1, texts=texts_of(answers))
    sampling = {"max_new_tokens": NEW_TOKENS, "temperature": 0, "stop_token_ids": [expected.tokens[end]]}
    body = {"input_ids": prompt, "sampling_params": sampling, "return_logprob": True, "top_logprobs_num": 3}
    answer = server.post("/generate", body)
    meta = answer["meta_info"]
    assert answer["output_ids"] == expected.tokens[: end + 1] and meta["finish_reason"]["type"] == "stop"
    best = oracle.logprobs(prompt, expected.tokens[: end + 1]).topk(3)
    for row, values in zip(meta["output_top_logprobs"], best.values.tolist(), strict=True):
        assert [value for value, *_ in row] == pytest.approx(values, abs=TOLERANCE)
    assert_same(generate(server, prompt, NEW_TOKENS)[0], expected)


def test_grammar(server, drafts, answers):
    """Drafts that the grammar forbids are wrong ones; drafts that it allows are accepted."""
    prompt, _ = answers[40]
    pattern = {"regex": r"[a-c]{12}"}
    drafts.write(0)
    expected = generate(server, prompt, 30, ignore_eos=False, **pattern)[0]
    for right in (OWN, 2, ROWS - 1):
        drafts.write(right, texts=[prompt + expected.tokens])
        answer, meta = generate(server, prompt, 30, ignore_eos=False, **pattern)
        assert answer.tokens == expected.tokens
        assert right is OWN or meta["spec_num_correct_drafts"] > 0


def test_abort_in_the_middle(server, drafts):
    drafts.write(OWN)
    sampling = {"max_new_tokens": 900, "ignore_eos": True}
    body = {"input_ids": random_prompt(200, VOCABULARY, 5), "sampling_params": sampling}
    for _ in range(ATTEMPTS):
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(server.post, "/generate", body) for _ in range(2)]
            time.sleep(4 * POLL_SECONDS)
            server.client.post(f"{server.base_url}/abort_request", body={"rid": "", "abort_all": True}, cast_to=object)
        ends = [one.result()["meta_info"]["finish_reason"]["type"] for one in asked]
        if ends == ["abort"] * 2:
            return
    pytest.fail(f"{ATTEMPTS} times a request had ended before it was aborted")


def test_retraction_changes_no_answer(server, drafts, oracle):
    """Requests outgrow the pool together; some are prefilled again with what had been accepted."""
    for attempt in range(ATTEMPTS):
        prompts = [random_prompt(300, VOCABULARY, seed) for seed in range(20 + 6 * attempt, 26 + 6 * attempt)]
        drafts.write(OWN)
        given = all_at_once(generate, server, prompts, 130)
        for prompt, (answer, _) in zip(prompts, given, strict=True):
            oracle.check(prompt, answer, TOLERANCE)
        if sum(meta["num_retractions"] for _, meta in given):
            return
    pytest.fail(f"{ATTEMPTS} times no request was retracted")


SAMPLES = 192
CHI_SQUARE_BOUND = 37.4  # a sum of squares of three independent normal deviates exceeds this once in 10⁷ times


@pytest.mark.parametrize("right", [OWN, ROWS - 1])
def test_sampled_answers_have_the_model_s_distribution(server, drafts, oracle, right):
    """Of the two likeliest tokens at two steps, after a draft that is one of them or none."""
    prompt = random_prompt(70, VOCABULARY, seed=9)
    probabilities = {}
    for first in range(2):
        for second in range(2):
            tokens, probability = [], 1.0
            for choice in (first, second):
                best = oracle.logprobs(prompt, [*tokens, 0])[-1].topk(2)
                probability *= float(torch.softmax(best.values, 0)[choice])
                tokens.append(int(best.indices[choice]))
            probabilities[tuple(tokens)] = probability
    drafts.write(right, texts=[[*prompt, *next(iter(probabilities))]])
    sampling = {"max_new_tokens": 2, "temperature": 1.0, "top_k": 2, "ignore_eos": True, "n": SAMPLES}
    counts = dict.fromkeys(probabilities, 0)
    for answer in server.post("/generate", {"input_ids": prompt, "sampling_params": sampling}):
        counts[tuple(answer["output_ids"])] += 1
    assert min(probabilities.values()) * SAMPLES > 5, "too few of each for the bound"
    assert sum((counts[key] - SAMPLES * p) ** 2 / (SAMPLES * p) for key, p in probabilities.items()) < CHI_SQUARE_BOUND


@pytest.mark.parametrize(("field", "value"), REFUSED_FIELDS.items())
def test_fields_that_verification_blurs_are_refused(server, field, value):
    body = {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 4, field: value}}
    with pytest.raises(OSError) as refusal:
        server.post("/generate", body)
    assert refusal.value.code == 400
    assert f"{field} = {value} is not supported with speculative decoding" in refusal.value.read().decode()
