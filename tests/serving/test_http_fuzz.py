"""Requests that are almost right, or not at all: never a status of 500 and above, and the server goes on."""

import json
import urllib.error
import urllib.request

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW = st.sampled_from([0, 1, 2, -1, -(2**40), 0.5, "2", None, True, [], {}])  # nothing that takes for ever
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(-1e300, 1e300, allow_nan=False), st.sampled_from([0, 1, -1])
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=12))
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
)
TOKEN_IDS = st.lists(st.one_of(st.integers(-5, 5000), LEAVES), max_size=6)
MESSAGES = st.lists(
    st.one_of(
        ANYTHING,
        st.fixed_dictionaries(
            {"role": st.one_of(st.sampled_from(["user", "assistant", "system", "tool"]), ANYTHING), "content": ANYTHING}
        ),
    ),
    max_size=3,
)
COMMON = {name: ANYTHING for name in ("stream_options", "stop", "seed", "logit_bias", "user", "response_format")}
COMMON |= {
    name: st.one_of(NUMBERS, ANYTHING) for name in ("temperature", "top_p", "presence_penalty", "min_p", "top_k")
}
COMMON |= {"n": FEW, "max_tokens": FEW, "logprobs": FEW, "stream": FEW, "regex": ANYTHING, "stop_token_ids": TOKEN_IDS}
SAMPLING = {name: ANYTHING for name in ("temperature", "top_p", "top_k", "stop", "json_schema", "regex", "logit_bias")}
SAMPLING |= {"max_new_tokens": FEW, "n": FEW, "min_new_tokens": FEW}
ENDPOINTS = {
    "/v1/completions": (
        {"model": "default", "prompt": "Hello", "max_tokens": 2},
        COMMON | {"prompt": st.one_of(ANYTHING, TOKEN_IDS, st.lists(TOKEN_IDS, max_size=2)), "echo": ANYTHING},
    ),
    "/v1/chat/completions": (
        {"model": "default", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2},
        COMMON | {"messages": MESSAGES, "tools": ANYTHING, "tool_choice": ANYTHING, "top_logprobs": FEW},
    ),
    "/generate": (
        {"text": "Hello", "sampling_params": {"max_new_tokens": 2}},
        {
            "text": ANYTHING,
            "input_ids": TOKEN_IDS,
            "sampling_params": st.one_of(ANYTHING, st.fixed_dictionaries({}, optional=SAMPLING)),
            "return_logprob": ANYTHING,
            "logprob_start_len": FEW,
            "top_logprobs_num": FEW,
            "rid": ANYTHING,
        },
    ),
}


def bodies(endpoint: str) -> st.SearchStrategy:
    """A right body with some fields replaced or added."""
    right, fields = ENDPOINTS[endpoint]
    changes = st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: fields[name] for name in names})
    )
    return changes.map(lambda changed: right | changed)


def status(server, path: str, body: bytes) -> int:
    request = urllib.request.Request(server.base_url + path, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            answer.read()
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_almost_right_requests(trained_server, endpoint):
    @settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(bodies(endpoint))
    def no_request_is_the_servers_fault(body):
        code = status(trained_server, endpoint, json.dumps(body).encode())
        assert code < 500, body
        assert trained_server.is_running(), body

    no_request_is_the_servers_fault()
    assert not any(trained_server.idle_counters().values())


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a":' * 500])
def test_what_is_no_json_object(trained_server, endpoint, body):
    assert 400 <= status(trained_server, endpoint, body) < 500
