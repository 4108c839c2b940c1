"""Lightning attention: closed form, chunk form and the Triton kernels agree, whatever the batch."""

from itertools import pairwise

import pytest
import torch

from sala_sglang.config import alibi_slopes
from tests.kernels.lightning_inputs import (
    MIXED,
    check_against_exact,
    closed_form,
    dtypes,
    gpu,
    make_inputs,
    make_states,
    run_chunk,
)
from tests.kernels.paging import relative_error

both = pytest.mark.parametrize("implementation", ["reference", "triton"])


@pytest.fixture(autouse=True)
def poisoned_memory():
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new tensors with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def short_segments(monkeypatch):
    """Segments of two chunks: a request of 150 rows has two of them."""
    monkeypatch.setattr("sala_kernels.lightning.triton.SEGMENT_TOKENS", 128)


def test_decay_of_the_released_heads():
    decay = (-torch.tensor(alibi_slopes(32))).exp()
    expected = {0: 0.43132, 1: 0.49307, 15: 0.93941, 30: 0.99537, 31: 0.99610}
    assert {head: round(float(decay[head]), 5) for head in expected} == expected


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_reference_is_the_closed_form(device, heads):
    q, k, v, log_decay = make_inputs(150, heads, 16, torch.float64, device)
    states = make_states(1, [0], heads, 16, device).double()
    exact, exact_state = closed_form(q, k, v, log_decay, states[0], 0.25)
    output = run_chunk(q, k, v, log_decay, states, [0], [150], scale=0.25, implementation="reference")
    assert relative_error(output, exact) < 1e-13
    assert relative_error(states[0], exact_state) < 1e-13


@both
@pytest.mark.parametrize("scale", [16**-0.5, 0.37])
def test_scale(device, short_segments, implementation, scale):
    # The norm that follows in the model divides a wrong factor out again, so only this test can see it.
    inputs = make_inputs(140, 2, 16, torch.float32, device)
    states = make_states(1, [0], 2, 16, device)
    exact, _ = closed_form(*inputs, states[0], scale)
    output = run_chunk(*inputs, states, [0], [140], scale=scale, implementation=implementation)
    assert relative_error(output, exact) < 1e-5


@dtypes
@pytest.mark.parametrize(("heads", "dim"), [(1, 16), (3, 32), (2, 64), (1, 128), (1, 256)])
def test_chunk_kernels(device, short_segments, heads, dim, dtype):
    check_against_exact(MIXED, heads, dim, dtype, device)


@dtypes
def test_many_segments(device, short_segments, dtype):
    check_against_exact([1, 128, 321, 0, 256, 129], 2, 32, dtype, device)


@both
@pytest.mark.parametrize("unit", [1, 64], ids=["anywhere", "between chunks"])
def test_any_split_of_a_prompt(device, short_segments, implementation, unit):
    inputs = make_inputs(400, 3, 16, torch.float32, device)
    states = make_states(1, [0], 3, 16, device)
    exact, exact_state = closed_form(*inputs, states[0], 0.125)
    cuts = [0, *sorted(unit * torch.randint(0, 400 // unit + 1, (4,))), 400]
    outputs = []
    for begin, end in pairwise(cuts):
        part = (x[begin:end] for x in inputs[:3])
        outputs.append(run_chunk(*part, inputs[3], states, [0], [end - begin], implementation=implementation))
    assert relative_error(torch.cat(outputs), exact) < 2e-6
    assert relative_error(states[0], exact_state) < 2e-6


@both
def test_snapshot_is_the_state_of_a_run_that_stops_there(device, short_segments, implementation):
    lengths, tokens = [150, 64, 130, 300, 300, 0, 130], [128, 64, 0, 256, 192, 0, 64]
    slots, targets = list(range(7)), [7, 8, 9, 10, 11, 12, -1]
    inputs = make_inputs(sum(lengths), 2, 16, torch.float32, device)
    states = make_states(14, slots, 2, 16, device)
    stopped = states.clone()
    snapshots = list(zip(targets, tokens, strict=True))
    run_chunk(*inputs, states, slots, lengths, snapshots, implementation=implementation)
    own_rows = torch.arange(sum(lengths), device=device).split(lengths)
    rows = torch.cat([own[:n] for own, n in zip(own_rows, tokens, strict=True)])
    run_chunk(*(x[rows] for x in inputs[:3]), inputs[3], stopped, slots, tokens, implementation=implementation)
    assert torch.equal(states[7:13], stopped[:6])
    assert states[13].isnan().all()


@both
@pytest.mark.parametrize("factor", [1, 30])
def test_skipped_requests_and_foreign_slots(device, short_segments, implementation, factor):
    owned, skipped, rest = 70 * factor, 5 * factor, 9 * factor  # nobody owns the last rows
    inputs = make_inputs(owned + skipped + 1 + rest, 3, 16, torch.float32, device)
    states = make_states(4, [0, 2], 3, 16, device)
    output = run_chunk(*inputs, states, [2, -1, 0], [owned, skipped, 1], implementation=implementation)
    assert (output[:owned] != 0).all() and (output[owned : owned + skipped] == 0).all()
    assert (output[-rest:] == 0).all() and (output[-rest - 1] != 0).all()
    assert output.isfinite().all()
    assert states[[1, 3]].isnan().all() and states[[0, 2]].isfinite().all()


@both
def test_a_request_does_not_depend_on_its_batch(device, short_segments, implementation):
    lengths, slots = [70, 1, 129, 300], [3, 0, 2, 4]
    q, k, v, log_decay = make_inputs(sum(lengths), 2, 16, torch.float32, device)
    initial = make_states(5, slots, 2, 16, device)
    together = initial.clone()
    output = run_chunk(q, k, v, log_decay, together, slots, lengths, implementation=implementation)
    parts = list(zip(q.split(lengths), k.split(lengths), v.split(lengths), output.split(lengths), strict=True))

    alone = initial.clone()
    for slot, length, (*part, expected) in zip(slots, lengths, parts, strict=True):
        result = run_chunk(*part, log_decay, alone, [slot], [length], implementation=implementation)
        assert torch.equal(result, expected)
    assert torch.equal(alone[slots], together[slots])

    turned = initial.clone()
    reversed_inputs = (torch.cat(x) for x in zip(*(part[:3] for part in parts[::-1]), strict=True))
    result = run_chunk(*reversed_inputs, log_decay, turned, slots[::-1], lengths[::-1], implementation=implementation)
    assert torch.equal(result, torch.cat([part[3] for part in parts[::-1]]))
    assert torch.equal(turned[slots], together[slots])


def test_no_drift(device):
    check_drift(16384, 1, 16, torch.float32, device)


def check_drift(tokens, heads, dim, dtype, device):
    inputs = make_inputs(tokens, heads, dim, dtype, device)
    states = torch.zeros(1, heads, dim, dim, device=device)
    exact, exact_state = [], states[0].double()
    for part in zip(*(x.split(1024) for x in inputs[:3]), strict=True):
        rows, exact_state = closed_form(*part, inputs[3], exact_state, 0.125)
        exact.append(rows)
    output = run_chunk(*inputs, states, [0], [tokens], implementation="triton")
    assert relative_error(states[0], exact_state) < 1e-4
    assert relative_error(output[:1024], exact[0]) < 2e-3
    assert relative_error(output[-1024:], exact[-1]) < 2e-3


@gpu
@pytest.mark.parametrize("lengths", [[8192], [512] * 16, [1] * 20 + [700] * 3, MIXED])
@pytest.mark.parametrize(("heads", "dim"), [(32, 128), (2, 256)])
@dtypes
def test_chunk_at_real_size(device, lengths, heads, dim, dtype):
    check_against_exact(lengths, heads, dim, dtype, device)


@gpu
def test_no_drift_over_65536_tokens(device):
    check_drift(65536, 32, 128, torch.bfloat16, device)


@gpu
def test_slots_behind_two_billion_elements(device):
    slot, slots = 4100, 4104  # of 2**19 elements each
    inputs = make_inputs(65, 32, 128, torch.bfloat16, device)
    states = torch.empty(slots, 32, 128, 128, device=device)
    near = make_states(2, [0], 32, 128, device)
    states[slot] = near[0]
    output = run_chunk(*inputs, states, [slot], [65], [(slot + 1, 64)], implementation="triton")
    assert torch.equal(output, run_chunk(*inputs, near, [0], [65], [(1, 64)], implementation="triton"))
    assert torch.equal(states[slot : slot + 2], near)
