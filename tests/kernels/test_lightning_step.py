"""The decode step of a lightning layer: exactly the q and k of qk_norm_rope, the closed form, and near float64."""

import pytest
import torch
from sala_kernels.lightning_step import lightning_step
from sala_kernels.qk_norm_rope import qk_norm_rope

from sala_sglang.config import alibi_slopes
from tests.kernels.lightning_inputs import closed_form, dtypes, gpu, ints, make_states
from tests.kernels.paging import relative_error

EPS = 1e-6
SCALE = 0.125
both = pytest.mark.parametrize("implementation", ["reference", "triton"])
sizes = pytest.mark.parametrize(
    ("requests", "heads", "dim"), [(0, 1, 16), (1, 1, 16), (4, 3, 32), (3, 2, 64), (2, 2, 128), (1, 1, 256)]
)


@pytest.fixture(autouse=True)
def poisoned_memory():
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new tensors with NaN
    yield
    torch.use_deterministic_algorithms(False)


class Step:
    """Arguments of a step: rows of one projection, of different size, at positions of up to a million."""

    def __init__(self, requests: int, heads: int, dim: int, dtype: torch.dtype, device: str):
        projection = torch.randn(requests, 4, heads, dim, device=device)
        projection = projection * (0.1 + 4 * torch.rand(requests, 1, 1, 1, device=device))
        self.q, self.k, self.v, _ = projection.to(dtype).unbind(1)
        weights = (torch.randn(dim, device=device).to(dtype) for _ in range(2))
        positions = torch.randint(0, 1_000_001, (requests,), device=device)
        inv_freq = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
        self.norm_rope = (*weights, positions, inv_freq, EPS)
        self.log_decay = -torch.tensor(alibi_slopes(heads), dtype=torch.float32, device=device)
        self.scale = SCALE

    def run(self, states, slots, targets, implementation):
        metadata = ints(slots, self.q.device), ints(targets, self.q.device), self.log_decay, self.scale
        return lightning_step(self.q, self.k, self.v, *self.norm_rope, states, *metadata, implementation=implementation)


def rounding_slack(elements: int, dtype: torch.dtype) -> float:
    """Relative error of q and k whose elements may round to the other side where sums run in another order.

    As the tests of qk_norm_rope have it: one element, and one of a hundred, by one unit of the last place at most.
    """
    return 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps * (0.01 + 1 / elements) ** 0.5


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_reference_is_the_closed_form(device, heads):
    step = Step(150, heads, 16, torch.float64, device)
    weights, positions, rest = step.norm_rope[:2], step.norm_rope[2], step.norm_rope[3:]
    states = make_states(1, [0], heads, 16, device).double()
    q, k = qk_norm_rope(step.q, step.k, *step.norm_rope, implementation="reference")
    exact, exact_state = closed_form(q, k, step.v, step.log_decay, states[0], SCALE)
    outputs = []
    for rows in zip(step.q.split(1), step.k.split(1), step.v.split(1), positions.split(1), strict=True):
        step.q, step.k, step.v, position = rows
        step.norm_rope = (*weights, position, *rest)
        outputs.append(step.run(states, [0], [-1], "reference"))
    assert relative_error(torch.cat(outputs), exact) < 1e-13
    assert relative_error(states[0], exact_state) < 1e-13


@both
@dtypes
@sizes
def test_q_and_k_are_those_of_qk_norm_rope(device, implementation, requests, heads, dim, dtype):
    """A state of ones on the diagonal gives q back, values of ones leave k in every column of an empty state."""
    step = Step(requests, heads, dim, dtype, device)
    slots = torch.randperm(requests + 3).tolist()[:requests]
    q, k = qk_norm_rope(step.q, step.k, *step.norm_rope, implementation=implementation)
    step.log_decay, step.scale = torch.zeros_like(step.log_decay), 1.0
    step.v = torch.zeros_like(step.v)
    states = torch.eye(dim, device=device).repeat(requests + 3, heads, 1, 1)
    output = step.run(states, slots, [-1] * requests, implementation)
    step.v = torch.ones_like(step.v)
    states = torch.zeros_like(states)
    step.run(states, slots, [-1] * requests, implementation)
    assert output.is_contiguous() and output.dtype == dtype
    for actual, expected in ((output, q), (states[slots], k.float()[..., None].expand(-1, -1, -1, dim))):
        if device == "cpu":
            assert torch.equal(actual, expected)
        elif requests:  # there the compiler orders the sums of each kernel by itself
            assert relative_error(actual, expected) <= rounding_slack(step.k.numel(), dtype)


@dtypes
@sizes
def test_triton_against_float64(device, requests, heads, dim, dtype):
    check_against_exact(max(requests, 1), heads, dim, dtype, device)


def check_against_exact(requests, heads, dim, dtype, device):
    """float64 from the rounded q and k on: the output may lose its own rounding besides the slack of q and k."""
    step = Step(requests, heads, dim, dtype, device)
    slots = torch.randperm(requests + 3).tolist()[:requests]
    states = make_states(requests + 3, slots, heads, dim, device)
    q, k = (x.double() for x in qk_norm_rope(step.q, step.k, *step.norm_rope, implementation="reference"))
    decayed = step.log_decay.double().exp()[:, None, None] * states[slots].double()
    exact_states = decayed + torch.einsum("bhd,bhe->bhde", k, step.v.double())
    exact = SCALE * torch.einsum("bhd,bhde->bhe", q, exact_states)
    output = step.run(states, slots, [-1] * requests, "triton")
    slack = rounding_slack(step.k.numel(), dtype)
    assert relative_error(states[slots], exact_states) <= slack
    assert relative_error(output, exact) <= relative_error(exact.to(dtype), exact) + 2 * slack


@both
def test_snapshots_padding_and_foreign_slots(device, implementation):
    step = Step(4, 3, 32, torch.bfloat16, device)
    slots, targets = [5, -1, 0, 2], [1, 3, -1, 6]
    states = make_states(8, [0, 2, 5], 3, 32, device)
    output = step.run(states, slots, targets, implementation)
    assert (output[1] == 0).all() and (output[[0, 2, 3]] != 0).all() and output.isfinite().all()
    assert torch.equal(states[[1, 6]], states[[5, 2]])
    assert states[[3, 4, 7]].isnan().all() and states[[0, 2, 5]].isfinite().all()


@both
def test_positions_may_be_int32(device, implementation):
    step = Step(2, 2, 16, torch.float32, device)
    states = make_states(2, [0, 1], 2, 16, device)
    expected = step.run(states.clone(), [1, 0], [-1, -1], implementation)
    weights, positions, rest = step.norm_rope[:2], step.norm_rope[2], step.norm_rope[3:]
    step.norm_rope = (*weights, positions.int(), *rest)
    assert torch.equal(step.run(states, [1, 0], [-1, -1], implementation), expected)


@gpu
@pytest.mark.parametrize("requests", [1, 32, 128])
@dtypes
def test_at_real_size(device, requests, dtype):
    check_against_exact(requests, 32, 128, dtype, device)


@gpu
def test_slots_behind_two_billion_elements(device):
    slot, slots = 4100, 4104  # of 2**19 elements each
    step = Step(1, 32, 128, torch.bfloat16, device)
    states = torch.empty(slots, 32, 128, 128, device=device)
    near = make_states(2, [0], 32, 128, device)
    states[slot] = near[0]
    output = step.run(states, [slot], [slot + 1], "triton")
    assert torch.equal(output, step.run(near, [0], [1], "triton"))
    assert torch.equal(states[slot : slot + 2], near)


@gpu
def test_graph_replay_is_the_eager_step(device):
    requests = 8
    step = Step(requests, 32, 128, torch.bfloat16, device)
    states = make_states(20, list(range(12)), 32, 128, device)
    slots, targets = ints(range(requests), device), ints([-1] * requests, device)
    arguments = (step.q, step.k, step.v, *step.norm_rope)
    rest = slots, targets, step.log_decay, SCALE
    initial = states.clone()
    lightning_step(*arguments, states, *rest)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = lightning_step(*arguments, states, *rest)

    slots.copy_(ints([11, 3, -1, 0, 7, -1, 2, 9], device))
    targets.copy_(ints([-1, 12, -1, 13, -1, -1, 14, 15], device))
    for x in (step.q, step.k, step.v):
        x.copy_(torch.randn_like(x))
    states.copy_(initial)
    output.fill_(torch.nan)
    graph.replay()
    assert torch.equal(output, lightning_step(*arguments, initial, *rest))
    assert torch.equal(states.nan_to_num(7), initial.nan_to_num(7))
