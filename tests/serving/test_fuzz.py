"""Bodies that are almost right: the server refuses or answers them, and neither fails, ends, hangs nor leaks.

Meanwhile ordinary questions are asked, and get the answer that they always get.
"""

import http.client
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testing.server import ANSWER_SECONDS, Server

EXAMPLES = 400  # for each endpoint
QUESTION = (
    "Text: The baker sings a song. The code of the red fox is 4711. The nurse drinks warm tea.\n\n"
    "What is the code of the red fox?"
)
ANSWER = "The code of the red fox is 4711."

GENERATE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
SHORT = {"max_new_tokens": 2, "temperature": 1}
VALID = {
    GENERATE: {"text": "A child", "sampling_params": SHORT},
    COMPLETIONS: {"prompt": "A child", "max_tokens": 2},
    CHAT: {"messages": [{"role": "user", "content": "A child"}], "max_tokens": 2},
}

# Requests that SGLang alone does not survive, or answers with status 500, each with words of the refusal.
ENDS_THE_SERVER = [
    (COMPLETIONS, {"prompt": [-1]}, "input_ids = -1 is not supported; allowed: 0 to 1535"),
    (COMPLETIONS, {"prompt": [[1], [1536]]}, "input_ids = 1536"),
    (COMPLETIONS, {"prompt": [[1], []]}, "prompt is empty"),
    (COMPLETIONS, {"prompt": "a", "logprobs": 2**31}, "top_logprobs_num = 2147483648"),
    (COMPLETIONS, {"prompt": "a", "n": 2**31}, "n = 2147483648"),
    (COMPLETIONS, {"prompt": "a", "top_k": 2**31}, "top_k = 2147483648"),
    (COMPLETIONS, {"prompt": "a", "min_tokens": 1, "stop_token_ids": [1536]}, "stop_token_ids = 1536"),
    (COMPLETIONS, {"prompt": "a", "top_p": 0.5, "logit_bias": {"5": 1e39}}, "logit_bias = 1e+39"),
    (CHAT, {"input_ids": [-1]}, "input_ids = -1"),
    (GENERATE, {"input_ids": [[]]}, "prompt is empty"),
    (GENERATE, {"text": "a", "return_logprob": True, "logprob_start_len": -2}, "logprob_start_len = -2"),
    (GENERATE, {"text": "a", "top_logprobs_num": []}, "top_logprobs_num"),
    (GENERATE, {"text": "a", "logprob_start_len": [0]}, "logprob_start_len"),
    (GENERATE, {"text": "a", "positional_embed_overrides": [1, [0]]}, "positional_embed_overrides"),
    (GENERATE, {"text": "a", "custom_labels": {"a": "b"}}, "custom_labels ['a']"),
    (GENERATE, {"text": "a", "token_indices_to_pool": []}, "token_indices_to_pool is empty"),
    (GENERATE, {"input_ids": [1, 2], "token_indices_to_pool": [2]}, "token_indices_to_pool = 2"),
    (GENERATE, {"text": "a", "sampling_params": {"custom_params": {"a": [[1]]}}}, "sampling_params.custom_params"),
    (GENERATE, {"text": "a", "sampling_params": SHORT | {"ebnf": "root ::= root", "top_k": 5}}, "ebnf"),
    (GENERATE, {"text": "a", "sampling_params": SHORT | {"ebnf": 'root ::= "a" x\nx ::= x', "top_k": 5}}, "ebnf"),
    (
        GENERATE,
        {"text": "a", "sampling_params": {"regex": "a", "min_new_tokens": 3, "max_new_tokens": 4, "top_p": 0.9}},
        "min_new_tokens forbids",
    ),
]
FAILS = [
    (CHAT, [], "unexpected shape"),
    (CHAT, {"response_format": True}, "'response_format'"),
    (CHAT, {"response_format": {"type": "json_schema", "schema": {"properties": 5}}}, "'response_format'"),
    (CHAT, {"chat_template_kwargs": {"tokenize": False}}, "tokenize"),
    (CHAT, {"stop_regex": "("}, "stop_regex = '('"),
    (CHAT, {"rid": ["a"]}, "rid = ['a']"),
    (COMPLETIONS, {"prompt": "a", "stop_regex": "a{99999999999}"}, "stop_regex"),
    (GENERATE, {"text": "a", "rid": []}, "rid = []"),
    (GENERATE, {"text": "a", "sampling_params": []}, "sampling_params is empty"),
    (GENERATE, {"text": "a", "sampling_params": {"n": None}}, "n = None"),
    (GENERATE, {"text": ["a", "b"], "top_logprobs_num": [1]}, "Too few entries in top_logprobs_num"),
    (GENERATE, {"text": "a", "session_params": {"unknown": 1}}, "unknown"),
    (GENERATE, {"input_embeds": []}, "input_embeds is empty"),
    (GENERATE, {"text": "a", "sampling_params": SHORT | {"json_schema": '{"$ref": "#"}'}}, "json_schema"),
]
NEVER_ENDS = [(GENERATE, {"text": "a", "rid": "HEALTH_CHECK_1"}, "HEALTH_CHECK_1")]

# The sampling parameters of /generate, which its schema leaves open.
SAMPLING = {
    "integer": ["min_new_tokens", "beam_width", "top_k", "stream_interval", "sampling_seed", "max_new_tokens", "n"],
    "number": ["temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"],
    "boolean": ["ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim", "unknown"],
    "string": ["stop", "stop_regex", "regex", "json_schema", "ebnf", "structural_tag"],
    "array": ["stop_token_ids"],
    "object": ["logit_bias", "custom_params", "watermark"],
}
SAMPLING_FIELDS = {name: {"type": kind} for kind, names in SAMPLING.items() for name in names}
ODD: list[Any] = [
    *(None, True, False, 0, -1, 2, 1535, 1536, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.5, 1e300, "", "a", "NaN", "-1"),
    *("5", "\x00", "(", "[", "a{9}", "root ::= root", '{"type":', '{"$ref": "#"}', '{"type": "object"}', "required"),
    *([], [None], [0], [-1], [2**31], [2**63], ["a"], [""], [[]], [[0]], [[-1]], [[0], []], [0, "a"], [1, [0]], [{}]),
    *({}, {"a": 1}, {"0": 1}, {"0": 1e300}, {"-1": 1}, {"type": "json_schema"}, {"type": "json_schema", "schema": "a"}),
    *({"id": "a"}, [[0.5, 0.5]], [[[0.5]]], [{"role": "user"}], [{"role": "a", "content": "a"}]),
]
# Other values of these would be valid and only take long.
ODD_LENGTHS = [0, 1, -1, True, "2", "a", 1.5, 2**31, 2**63, 10**30, [], {}, ""]
ODD_VALUES = dict.fromkeys(("max_new_tokens", "max_tokens", "max_completion_tokens", "n"), ODD_LENGTHS)
ODD_VALUES["sampling_params"] = [[], [{}], [SHORT], [SHORT, SHORT], "a", 5, True]

anything: st.SearchStrategy = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
# By their names in JSON schemas.
TYPES: dict[str, st.SearchStrategy] = {
    "null": st.none(),
    "boolean": st.booleans(),
    "integer": st.integers(-2, 9) | st.sampled_from([1535, 1536, 2**31, 2**63]),
    "number": st.floats(-1, 2) | st.sampled_from([0, 1, 1e-30, 1e30]),
    "string": st.text(max_size=5) | st.sampled_from([value for value in ODD if isinstance(value, str)]),
    "object": st.dictionaries(st.sampled_from(["0", "5", "1536", "a"]), st.integers(-2, 9) | anything, max_size=3),
}


def fitting(schema: dict) -> st.SearchStrategy:
    """Values of the type that ``schema`` asks for, as far as it says."""
    if "anyOf" in schema:
        return st.one_of([fitting(choice) for choice in schema["anyOf"]])
    if schema.get("type") == "array":
        return st.lists(fitting(schema.get("items", {"type": "integer"})), max_size=3)
    return TYPES.get(schema.get("type", ""), anything)


def odd_fields(schemas: dict[str, dict]) -> st.SearchStrategy:
    """Up to three of the fields, with values of the right type or not."""
    values = {
        name: st.sampled_from(ODD_VALUES[name]) if name in ODD_VALUES else fitting(schema) | st.sampled_from(ODD)
        for name, schema in schemas.items()
    }
    names = st.lists(st.sampled_from(sorted(schemas)), max_size=3, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: values[name] for name in chosen}))


@st.composite
def odd_bodies(draw, path: str, schemas: dict[str, dict]) -> bytes:
    """A valid body with a few odd fields, or a piece of one."""
    body = VALID[path] | draw(odd_fields(schemas))
    if body.get("sampling_params") == SHORT:
        body["sampling_params"] = SHORT | draw(odd_fields(SAMPLING_FIELDS))
    if {"input_ids", "input_embeds"} & body.keys() and draw(st.booleans()):
        body.pop("text", None)
    text = json.dumps(body).encode()
    broken = st.integers(0, len(text) - 1).map(lambda end: text[:end]) | st.binary(max_size=9)
    return draw(broken) if draw(st.integers(0, 9)) == 0 else text


def post(server: Server, path: str, body: bytes) -> tuple[int, str]:
    """Status and text of the answer, which is no error of the server, not in the middle of a stream either."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        status, text = answer.status, answer.read().decode()
    finally:
        connection.close()
    assert status < 500 and not re.search(r'"(status_)?code": ?5\d\d', text), text
    return status, text


def ask(server: Server) -> str | None:
    answer = server.client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=40,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    return answer.choices[0].message.content


@contextmanager
def questions_meanwhile(server: Server):
    finished = threading.Event()

    def keep_asking() -> set[str | None]:
        answers = {ask(server)}
        while not finished.is_set():
            answers.add(ask(server))
        return answers

    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(keep_asking)
        try:
            yield
        finally:
            finished.set()
        assert answers.result() == {ANSWER}


def check_rest(server: Server) -> None:
    assert server.is_running()
    assert ask(server) == ANSWER
    counters = server.idle_counters()
    assert not any(counters.values()), counters


def test_requests_that_once_did_harm(trained_server):
    with questions_meanwhile(trained_server):
        for path, body, words in ENDS_THE_SERVER + FAILS + NEVER_ENDS:
            whole = VALID[CHAT] | body if path == CHAT and body else body
            status, text = post(trained_server, path, json.dumps(whole).encode())
            assert status == 400 and words in text, (path, body, status, text)
    check_rest(trained_server)


@pytest.mark.soak
@pytest.mark.parametrize("path", VALID)
def test_odd_bodies(trained_server, path):
    schemas = json.loads(trained_server.get("/openapi.json"))
    content = schemas["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = schemas["components"]["schemas"][content["$ref"].split("/")[-1]]

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(odd_bodies(path, schema["properties"]))
    def send(body: bytes) -> None:
        post(trained_server, path, body)

    with questions_meanwhile(trained_server):
        send()
    check_rest(trained_server)
