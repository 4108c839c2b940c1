"""The benchmark of prefill apart from decode without servers: what it asks, and what it says was sent."""

from types import SimpleNamespace

from benchmarks.serving import apart
from sala_sglang.config import SALAConfig

MIB = 1 << 20


def test_bytes_that_are_sent():
    """Of the released model: 8,192 bytes per token of whole pages, and the states of 24 layers."""
    assert apart.sent_bytes(SALAConfig(), 131_072) == 131_072 * 8192 + 48 * MIB
    assert apart.sent_bytes(SALAConfig(), 1) == 64 * 8192 + 48 * MIB


def test_times_are_those_of_answers_of_the_asked_length(monkeypatch):
    clock = iter((0.0, 3.5))
    monkeypatch.setattr(apart.time, "perf_counter", lambda: next(clock))
    asked = []

    def post(path: str, body: dict) -> dict:
        asked.append(body)
        return {"meta_info": {"completion_tokens": 4}}

    assert apart.seconds(SimpleNamespace(post=post), [5, 6], 4) == 3.5
    assert asked[0]["input_ids"] == [5, 6] and asked[0]["sampling_params"]["max_new_tokens"] == 4
