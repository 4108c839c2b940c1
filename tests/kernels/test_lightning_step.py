"""The fused decode step of a lightning layer: exactly qk_norm_rope and lightning_recurrent, and near float64."""

import pytest
import torch
from lightning_inputs import dtypes, gpu, ints, make_states
from paging import relative_error
from sala_kernels.lightning import lightning_recurrent
from sala_kernels.lightning_step import lightning_step
from sala_kernels.qk_norm_rope import qk_norm_rope

from sala_sglang.config import alibi_slopes

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

    def fused(self, states, slots, targets, implementation):
        metadata = ints(slots, self.q.device), ints(targets, self.q.device), self.log_decay, SCALE
        return lightning_step(self.q, self.k, self.v, *self.norm_rope, states, *metadata, implementation=implementation)

    def apart(self, states, slots, targets, implementation):
        metadata = ints(slots, self.q.device), ints(targets, self.q.device), self.log_decay, SCALE
        q, k = qk_norm_rope(self.q, self.k, *self.norm_rope, implementation=implementation)
        return lightning_recurrent(q, k, self.v, states, *metadata, implementation=implementation)


def rounding_slack(elements: int, dtype: torch.dtype) -> float:
    """Relative error of q and k whose elements may round to the other side where sums run in another order.

    As the tests of qk_norm_rope have it: one element, and one of a hundred, by one unit of the last place at most.
    """
    return 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps * (0.01 + 1 / elements) ** 0.5


@both
@dtypes
@sizes
def test_fused_is_the_two_operators(device, implementation, requests, heads, dim, dtype):
    step = Step(requests, heads, dim, dtype, device)
    slots = torch.randperm(requests + 3).tolist()[:requests]
    states = make_states(requests + 3, slots, heads, dim, device)
    pools = states.clone(), states.clone()
    runs = zip((step.fused, step.apart), pools, strict=True)
    outputs = [run(pool, slots, [-1] * requests, implementation) for run, pool in runs]
    results = [pool[slots] for pool in pools]
    assert outputs[0].is_contiguous() and outputs[0].dtype == dtype
    if device == "cpu":
        assert torch.equal(*outputs) and torch.equal(*results)
    elif requests:
        # There the compiler orders the sums of each kernel by itself; the output is rounded after that.
        slack = rounding_slack(step.k.numel(), dtype)
        assert relative_error(*results) <= slack
        assert relative_error(*outputs) <= slack + torch.finfo(dtype).eps
    others = [slot for slot in range(requests + 3) if slot not in slots]
    assert pools[0][others].isnan().all()


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
    output = step.fused(states, slots, [-1] * requests, "triton")
    slack = rounding_slack(step.k.numel(), dtype)
    assert relative_error(states[slots], exact_states) <= slack
    assert relative_error(output, exact) <= relative_error(exact.to(dtype), exact) + 2 * slack


@both
def test_snapshots_padding_and_foreign_slots(device, implementation):
    step = Step(4, 3, 32, torch.bfloat16, device)
    slots, targets = [5, -1, 0, 2], [1, 3, -1, 6]
    states = make_states(8, [0, 2, 5], 3, 32, device)
    output = step.fused(states, slots, targets, implementation)
    assert (output[1] == 0).all() and (output[[0, 2, 3]] != 0).all() and output.isfinite().all()
    assert torch.equal(states[[1, 6]], states[[5, 2]])
    assert states[[3, 4, 7]].isnan().all() and states[[0, 2, 5]].isfinite().all()


@both
def test_positions_may_be_int32(device, implementation):
    step = Step(2, 2, 16, torch.float32, device)
    states = make_states(2, [0, 1], 2, 16, device)
    expected = step.fused(states.clone(), [1, 0], [-1, -1], implementation)
    weights, positions, rest = step.norm_rope[:2], step.norm_rope[2], step.norm_rope[3:]
    step.norm_rope = (*weights, positions.int(), *rest)
    assert torch.equal(step.fused(states, [1, 0], [-1, -1], implementation), expected)


@gpu
@pytest.mark.parametrize("requests", [1, 32, 128])
@dtypes
def test_at_real_size(device, requests, dtype):
    check_against_exact(requests, 32, 128, dtype, device)


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
