"""Refusals of requests, in front of SGLang's own functions; tests/serving/test_fuzz.py asks a whole server."""

import asyncio
import json
import re
from array import array
from types import SimpleNamespace

import pytest
from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from sglang.srt import runtime_context
from sglang.srt.managers.io_struct import GenerateReqInput, TokenizedGenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from sala_sglang.plugin import http_requests

VOCABULARY, HIDDEN = 100, 8
LOWEST_TEMPERATURE = 1e-6  # SGLang takes lower ones for greedy


@pytest.fixture(autouse=True)
def without_speculation(monkeypatch):
    monkeypatch.setattr(runtime_context, "get_spec", lambda: SimpleNamespace(speculative_algorithm=None))


def parse(body, validator):
    """What ``parse`` makes of a body that ``validator`` reads."""

    async def solve(request, body):
        return validator(body)

    sent = json.dumps(body).encode()

    async def content() -> bytes:
        return sent

    return asyncio.run(http_requests.parse(solve, request=SimpleNamespace(body=content), body=body))


def take_schema(body) -> str:
    return body.get("format", {}).pop("schema", {}).get("type", "none")


def test_parsing_names_the_field_that_a_validator_did_not_expect():
    assert parse({"format": {"schema": {"type": "a"}}}, take_schema) == "a"
    for body, where in (
        ({"name": 1, "format": 5}, ("body", "format")),
        ({"format": {"schema": 5}}, ("body", "format")),  # the validator has taken it out before it failed
        ([1], ("body",)),
    ):
        with pytest.raises(RequestValidationError) as refusal:
            parse(body, take_schema)
        (error,) = refusal.value.errors()
        assert error["loc"] == where and "AttributeError" in error["msg"]


def test_parsing_refuses_bodies_that_are_no_objects():
    for body in ([1], "a", 5):
        with pytest.raises(RequestValidationError) as refusal:
            parse(body, take_schema)
        assert refusal.value.errors()[0]["loc"] == ("body",)


def test_errors_of_routes_without_a_body_stay_what_they_are():
    async def solve(request):
        raise AttributeError("of the server")

    with pytest.raises(AttributeError, match="of the server"):
        asyncio.run(http_requests.parse(solve, request=None))


def test_parsing_leaves_http_errors_alone():
    def unauthorized(body):
        raise HTTPException(401)

    with pytest.raises(HTTPException, match="401"):
        parse({}, unauthorized)


@pytest.mark.parametrize("names", ["HEALTH_CHECK_1", ["a", "HEALTH_CHECK_1"]])
def test_names_of_health_checks_are_refused(names):
    with pytest.raises(RequestValidationError, match="HEALTH_CHECK_1"):
        parse({"rid": names}, len)


def normalized(**fields) -> GenerateReqInput:
    request = GenerateReqInput(**fields)
    http_requests.normalize(GenerateReqInput.normalize_batch_and_arguments, request)
    return request


def test_normalizing_leaves_valid_requests_alone():
    assert normalized(text="a", rid="name").rid == "name"
    assert normalized(text=["a", "b"], sampling_params={"n": 2}, rid=["c", "d"]).text == ["a", "b"] * 2
    assert normalized(input_ids=[[1], [2]], top_logprobs_num=[1, 2], return_logprob=True)[1].top_logprobs_num == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text": "a", "sampling_params": {"n": 1025}}, "n = 1025 is not supported; allowed: 1 to 1024"),
        ({"text": ["a"], "sampling_params": [{"n": 0}]}, "n = 0"),
        ({"text": "a", "sampling_params": []}, "sampling_params is empty"),
        ({"text": "a", "sampling_params": [{}]}, "sampling_params = "),
        ({"text": "a", "rid": ["name"]}, "rid = "),
        ({"input_embeds": [[]]}, "input_embeds is empty"),
        ({"text": 5}, "cannot be read: TypeError"),
    ],
)
def test_normalizing_refuses(fields, words):
    with pytest.raises(ValueError, match=words):
        normalized(**fields)


def test_lists_that_are_too_short():
    def register(manager, request):
        return [request[i] for i in range(len(request.rid))]

    http_requests.register(register, None, normalized(text=["a", "b"], lora_path=["c", "d"]))
    http_requests.register(register, None, normalized(text="a", sampling_params={"n": 3}, modalities=[]))
    with pytest.raises(ValueError, match="Too few entries in lora_path; allowed: one for each of 2 prompts"):
        http_requests.register(register, None, normalized(text=["a", "b"], lora_path=["c"]))


def tokenized(sampling: dict | None = None, **fields) -> TokenizedGenerateReqInput:
    """The message of a request with these fields, of the API and of the message."""
    request = SimpleNamespace(input_ids=fields.get("input_ids"), custom_labels=fields.pop("custom_labels", None))
    defaults = dict.fromkeys(("input_text", "input_ids", "input_embeds", "mm_inputs", "token_type_ids", "rid"))
    defaults |= {"input_ids": [1, 2], "token_ids_logprob": None, "return_logprob": False, "stream": False}
    defaults |= {"logprob_start_len": -1, "top_logprobs_num": 0}

    def create(manager, request, input_text, input_ids):
        values = defaults | fields
        values["input_ids"] = array("q", values["input_ids"]) if values["input_ids"] is not None else None
        return TokenizedGenerateReqInput(sampling_params=SamplingParams(**sampling or {}), **values)

    manager = SimpleNamespace(
        model_config=SimpleNamespace(vocab_size=VOCABULARY, hidden_size=HIDDEN),
        enable_metrics=True,
        metrics_collector=SimpleNamespace(labels={"model_name": "a"}),
    )
    return http_requests.tokenize(create, manager, request, None, request.input_ids)


def test_tokenizing_leaves_valid_requests_alone():
    assert tokenized(input_ids=[0, VOCABULARY - 1]).input_ids == array("q", [0, VOCABULARY - 1])
    everything = {"top_k": -1, "logit_bias": {"5": -100.0}, "stop_token_ids": [0, 99], "custom_params": {"a": [1]}}
    assert tokenized(everything, return_logprob=True, top_logprobs_num=VOCABULARY, logprob_start_len=0)
    assert tokenized(input_ids=None, input_embeds=[[0.5] * HIDDEN])
    assert tokenized(custom_labels={"model_name": "b"}, token_indices_to_pool=[0, 1])


@pytest.mark.parametrize(
    ("sampling", "fields", "words"),
    [
        ({}, {"input_ids": [VOCABULARY]}, "input_ids = 100 is not supported; allowed: 0 to 99"),
        ({}, {"input_ids": [2**64]}, "input_ids = 18446744073709551616"),
        ({}, {"input_ids": []}, "prompt is empty"),
        ({}, {"input_ids": None, "input_embeds": [[0.5] * (HIDDEN - 1)]}, "input_embeds = 7"),
        ({}, {"input_ids": None, "input_embeds": [[1e38] * HIDDEN]}, "input_embeds = 1e\\+38"),
        ({}, {"top_logprobs_num": []}, r"\$.top_logprobs_num"),
        ({}, {"top_logprobs_num": VOCABULARY + 1}, "top_logprobs_num = 101"),
        ({}, {"logprob_start_len": -2}, "logprob_start_len = -2"),
        ({}, {"priority": 2**70}, "OverflowError"),
        ({}, {"positional_embed_overrides": [1, [0]]}, "positional_embed_overrides is not supported"),
        ({}, {"token_indices_to_pool": [2]}, "token_indices_to_pool = 2 is not supported; allowed: 0 to 1"),
        ({}, {"custom_labels": {"b": "c"}}, r"custom_labels \['b'\]"),
        ({"custom_params": {"a": [[1]]}}, {}, r"\$.sampling_params.custom_params"),
        ({"stop_token_ids": [-1]}, {}, "stop_token_ids = -1"),
        ({"top_k": 2**31}, {}, "top_k = 2147483648"),
        ({"min_new_tokens": 2**31}, {}, "min_new_tokens = 2147483648"),
        ({"temperature": 1e39}, {}, "temperature = 1e\\+39"),
        ({"repetition_penalty": 1e-40}, {}, "repetition_penalty = 1e-40"),
        ({"logit_bias": {"5": float("nan")}}, {}, "logit_bias = nan"),
    ],
)
def test_tokenizing_refuses(sampling, fields, words):
    with pytest.raises(ValueError, match=words):
        tokenized(sampling, **fields)


def test_regular_expressions():
    assert http_requests.stop_regex_length(len, "ab") == 2

    with pytest.raises(ValueError, match=r"stop_regex = '\(' is not supported: missing \)"):
        http_requests.stop_regex_length(re.compile, "(")
