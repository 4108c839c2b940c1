"""Compiling at the start takes every prompt length that has kernels of its own, and leaves the pools as they are."""

import pytest
import torch
from sala_kernels import contract

from sala_sglang.attention import warm_up
from sala_sglang.attention.warm_up import compile_commit, compile_lightning, compile_sparse, prompt_lengths
from tests.kernels.sparse_inputs import RELEASED, SMALL, Inputs


def test_lengths_of_the_released_sizes():
    assert prompt_lengths(RELEASED, 2**20) == [64] + [64 * 2**power for power in range(7, 15)]
    assert prompt_lengths(RELEASED, 20_000) == [64, 8192, 16_384, 20_000]
    assert prompt_lengths(RELEASED, 4096) == [64, 4096]


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize("context_len", [1000, 40])
def test_pools_are_only_read(device, monkeypatch, caplog, implementation, context_len):
    monkeypatch.setattr(contract, "default_implementation", lambda device: implementation)
    inputs = Inputs([1000], [2], SMALL, (4, 2), 16, torch.bfloat16, device)
    pools = inputs.keys, inputs.values, inputs.compressed
    before = [pool.clone() for pool in pools]
    token_slots = torch.zeros(3, 1024, dtype=torch.int32, device=device)  # as before the first request
    with caplog.at_level("INFO", logger=warm_up.__name__):
        compile_sparse(*pools, token_slots, SMALL, (4, 4), context_len)
    for pool, old in zip(pools, before, strict=True):
        torch.testing.assert_close(pool, old, equal_nan=True, rtol=0, atol=0)
    assert "compiled" in caplog.text


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_states_are_left_alone(device, monkeypatch, implementation):
    monkeypatch.setattr(contract, "default_implementation", lambda device: implementation)
    states = torch.full((3, 2, 16, 16), torch.nan, device=device)
    compile_lightning(states, -torch.ones(2, device=device), torch.bfloat16)
    assert states.isnan().all()


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_a_commit_of_nothing_leaves_states_alone(device, monkeypatch, implementation):
    monkeypatch.setattr(contract, "default_implementation", lambda device: implementation)
    states = torch.full((2, 3, 2, 16, 16), torch.nan, device=device)
    stash = torch.full((2, 8, 2, 2, 16), torch.nan, dtype=torch.bfloat16, device=device)
    compile_commit(stash, 4, states, -torch.ones(2, device=device))
    assert states.isnan().all()
