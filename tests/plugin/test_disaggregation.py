"""What prefill apart from decode asks of two servers: the same layout, and memory for the states that arrive."""

import logging
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from sglang.srt import runtime_context

from sala_sglang import environment
from sala_sglang.config import SALAConfig
from sala_sglang.plugin.disaggregation import Layout, leave_memory_for_arriving, refuse_other_layout

STATE_BYTES, LEFT = 1000, 10**6


def layout(config: SALAConfig | None = None, dtype: torch.dtype = torch.bfloat16, ranks: int = 1) -> str:
    pool = SimpleNamespace(full_kv_pool=SimpleNamespace(compressed_dtype=torch.bfloat16, dtype=dtype))
    with parallel(ranks):
        return Layout(config or SALAConfig()).name(lambda pool: None, pool)


@contextmanager
def parallel(ranks: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime_context, "get_parallel", lambda: SimpleNamespace(attn_tp_size=ranks))
        yield


def test_layouts_are_equal_where_bytes_mean_the_same(monkeypatch):
    assert layout() == layout(SALAConfig())
    found = {layout(), layout(dtype=torch.float8_e4m3fn), layout(SALAConfig(rope_theta=5e5)), layout(ranks=2)}
    monkeypatch.setenv(environment.DENSE_AS_SPARSE, "1")
    assert len(found | {layout()}) == 5 and "dense_len 0" in layout()


def test_a_server_that_does_not_fit_is_refused_and_named(caplog):
    def mismatch(manager: object, address: str) -> bool:
        raise RuntimeError("KV layout mismatch: prefill has a, decode has b")

    with caplog.at_level(logging.ERROR):
        assert refuse_other_layout(mismatch, None, "10.0.0.1:8998") is False
    assert "prompts from 10.0.0.1:8998 are refused: KV layout mismatch" in caplog.text
    assert refuse_other_layout(lambda manager, address: True, None, "10.0.0.1:8998") is True


@pytest.mark.parametrize(
    ("requests", "extra", "states", "snapshots", "overlap", "needed"),
    [
        (32, 64, 32, False, True, 96),  # without a prefix cache SGLang counts those that run alone
        (32, 0, 32, False, True, 32),
        (8, 16, 20, True, True, 72),  # two snapshots per request beside its state
        (8, 16, 20, True, False, 48),
        (8, 16, 200, True, True, 200),
        (None, 0, 50, False, True, 50),
    ],
)
def test_states_of_requests_that_arrive_are_counted(monkeypatch, requests, extra, states, snapshots, overlap, needed):
    schedule = SimpleNamespace(
        max_running_requests=requests, max_mamba_cache_size=states, disable_overlap_schedule=not overlap
    )
    mamba = SimpleNamespace(enable_mamba_extra_buffer=snapshots)
    context = SimpleNamespace(override=lambda source, **fields: vars(schedule).update(fields))
    for name, value in {
        "schedule": schedule,
        "disagg": SimpleNamespace(disaggregation_decode_extra_slots=extra),
        "exec": SimpleNamespace(mamba=mamba),
        "context": context,
    }.items():
        monkeypatch.setattr(runtime_context, f"get_{name}", lambda value=value: value)
    parameters = SimpleNamespace(mamba_cache_per_req=STATE_BYTES)
    configurator = SimpleNamespace(mambaish_config=SimpleNamespace(mamba2_cache_params=parameters))
    left = leave_memory_for_arriving(lambda configurator, before: LEFT, configurator, 0)
    assert schedule.max_mamba_cache_size == needed
    assert left == LEFT - (needed - states) * STATE_BYTES
