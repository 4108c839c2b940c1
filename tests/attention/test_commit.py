"""What the lightning backend makes of SGLang's account of a verify step, before the operator folds the rows."""

from types import SimpleNamespace

import pytest
import torch

from sala_sglang import hf

hf.register()  # SGLang's imports take the model's type for its own configuration

from sala_sglang.attention import lightning_backend  # noqa: E402
from sala_sglang.speculation.hybrid_backend import SalaHybridBackend  # noqa: E402

ROWS, SLOTS = 4, [5, 2, 7]
STATES = torch.zeros(2, 9, 2, 16, 16)


@pytest.fixture
def committed(monkeypatch):
    """The arguments of every commit, as lists."""
    calls = []

    def note(stash, rows, states, *per_request):
        assert states is STATES
        calls.append((rows, *(x.tolist() for x in per_request[:4])))
        assert all(x.dtype == torch.int32 for x in per_request[:4])

    monkeypatch.setattr(lightning_backend, "lightning_commit", note)
    return calls


def hybrid(rows: int) -> SalaHybridBackend:
    """SGLang's wrapper around a backend that has verified ``rows`` rows of three requests in a graph of four."""
    backend = lightning_backend.LightningBackend.__new__(lightning_backend.LightningBackend)
    slots = torch.tensor([*SLOTS, -1], dtype=torch.int32)
    backend.forward_metadata = SimpleNamespace(mamba_cache_indices=slots)
    backend.verified_rows, backend.stash, backend.log_decay = rows, torch.zeros(2, 16, 2, 2, 16), -torch.ones(2)
    pool = SimpleNamespace(mamba_cache=SimpleNamespace(temporal=STATES))
    backend.req_to_token_pool = SimpleNamespace(mamba_pool=pool, translate_mamba_indices=lambda slots: slots)
    wrapper = SalaHybridBackend.__new__(SalaHybridBackend)
    wrapper.linear_attn_backend = backend
    return wrapper


def test_rows_up_to_the_last_accepted_one(committed):
    hybrid(ROWS).update_mamba_state_after_mtp_verify(torch.tensor([0, 3, 1]), None, None, None)
    assert committed == [(ROWS, SLOTS, [1, 4, 2], [-1] * 3, [-1] * 3)]


def test_snapshots_but_not_of_requests_that_are_gone(committed):
    """A slot of −1 has been given away; a step of −1 passes no multiple of the interval."""
    last, slots, steps = torch.tensor([2, 3, 3]), torch.tensor([8, -1, 6]), torch.tensor([1, 2, -1])
    hybrid(ROWS).update_mamba_state_after_mtp_verify(last, slots, steps, None)
    ((_, _, accepted, targets, rows),) = committed
    assert accepted == [3, 4, 4] and targets == [8, -1, -1] and rows[0] == 2


def test_single_rows_are_in_the_states_already(committed):
    """Nothing is folded twice; a snapshot is a copy of the state as it is."""
    one = hybrid(1)
    one.update_mamba_state_after_mtp_verify(torch.tensor([0, 0, 0]), None, None, None)
    assert committed == []
    one.update_mamba_state_after_mtp_verify(
        torch.tensor([0, 0, 0]), torch.tensor([8, 4, -1]), torch.tensor([-1, 0, 0]), None
    )
    ((_, _, accepted, targets, rows),) = committed
    assert accepted == [0, 0, 0] and targets == [-1, 4, -1] and rows[1] == 0
