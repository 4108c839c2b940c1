"""Several rows of which not all may stay: outputs and states of as many decode steps, and nothing else written."""

import pytest
import torch
from sala_kernels.lightning_commit import lightning_commit
from sala_kernels.lightning_step import lightning_step
from sala_kernels.lightning_verify import lightning_verify

from sala_sglang.config import alibi_slopes
from tests.kernels.lightning_inputs import dtypes, gpu, ints, make_states

EPS, SCALE = 1e-6, 0.125
both = pytest.mark.parametrize("implementation", ["reference", "triton"])
sizes = pytest.mark.parametrize(
    ("requests", "rows", "heads", "dim"), [(1, 1, 1, 16), (3, 4, 3, 32), (2, 6, 2, 64), (1, 3, 2, 128)]
)


@pytest.fixture(autouse=True)
def poisoned_memory():
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new tensors with NaN
    yield
    torch.use_deterministic_algorithms(False)


class Verify:
    """A verify step of ``layers`` layers, and the decode steps that it stands for."""

    def __init__(
        self, requests: int, rows: int, heads: int, dim: int, dtype: torch.dtype, device: str, layers: int = 2
    ):
        self.requests, self.rows, self.layers, self.device = requests, rows, layers, device
        tokens = requests * rows
        projections = torch.randn(layers, tokens, 4, heads, dim, device=device).to(dtype)
        self.qkv = [projection[:, :3].unbind(1) for projection in projections]
        self.weights = [torch.randn(dim, device=device).to(dtype) for _ in range(2)]
        self.positions = torch.randint(0, 1_000_001, (tokens,), device=device)
        self.inv_freq = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
        self.log_decay = -torch.tensor(alibi_slopes(heads), dtype=torch.float32, device=device)
        self.stash = torch.full((layers, tokens + 3, 2, heads, dim), torch.nan, dtype=dtype, device=device)

    def verify(self, states, slots, implementation):
        """Outputs of all layers, [layers, tokens, heads, dim]."""
        norm_rope = *self.weights, self.positions, self.inv_freq, EPS
        where = ints(slots, self.device)
        outputs = []
        for qkv, layer, stash in zip(self.qkv, states, self.stash, strict=True):
            rest = layer, where, stash, self.log_decay, SCALE
            outputs.append(lightning_verify(*qkv, *norm_rope, *rest, implementation=implementation))
        return torch.stack(outputs)

    def commit(self, states, slots, accepted, snapshot_slots, snapshot_rows, implementation):
        per_request = (ints(x, self.device) for x in (slots, accepted, snapshot_slots, snapshot_rows))
        lightning_commit(self.stash, self.rows, states, *per_request, self.log_decay, implementation=implementation)

    def decode(self, states, slots, row, implementation):
        """Row ``row`` of every request as a decode step; ``states`` advance."""
        rows = torch.arange(self.requests, device=self.device) * self.rows + row
        nowhere = ints([-1] * self.requests, self.device)
        norm_rope = *self.weights, self.positions[rows], self.inv_freq, EPS
        outputs = []
        for qkv, layer in zip(self.qkv, states, strict=True):
            rest = layer, ints(slots, self.device), nowhere, self.log_decay, SCALE
            outputs.append(lightning_step(*(x[rows] for x in qkv), *norm_rope, *rest, implementation=implementation))
        return torch.stack(outputs)


def stacked_states(step: Verify, slots: int, used: list[int], heads: int, dim: int) -> torch.Tensor:
    return torch.stack([make_states(slots, used, heads, dim, step.device) for _ in range(step.layers)])


@both
@dtypes
@sizes
def test_rows_and_states_are_those_of_decode_steps(device, implementation, requests, rows, heads, dim, dtype):
    """Bit for bit, for every number of accepted rows."""
    step = Verify(requests, rows, heads, dim, dtype, device)
    slots = torch.randperm(requests + 2).tolist()[:requests]
    before = stacked_states(step, requests + 2, slots, heads, dim)
    states = before.clone()
    output = step.verify(states, slots, implementation).unflatten(1, (requests, rows))
    assert torch.equal(states.nan_to_num(7), before.nan_to_num(7)), "a verify step only reads the states"
    assert step.stash[:, requests * rows :].isnan().all()
    decoded = before.clone()
    for accepted in range(rows + 1):
        committed = before.clone()
        step.commit(committed, slots, [accepted] * requests, [-1] * requests, [0] * requests, implementation)
        assert torch.equal(committed.nan_to_num(7), decoded.nan_to_num(7)), accepted
        if accepted < rows:
            assert torch.equal(output[:, :, accepted], step.decode(decoded, slots, accepted, implementation))


@both
@pytest.mark.parametrize("row", range(5))
def test_a_snapshot_is_the_state_after_its_row(device, implementation, row):
    step = Verify(3, 4, 2, 32, torch.bfloat16, device)
    slots, targets = [4, 0, 2], [1, -1, 6]
    before = stacked_states(step, 7, slots, 2, 32)
    step.verify(before, slots, implementation)
    expected, committed = before.clone(), before.clone()
    step.commit(expected, slots, [row] * 3, [-1] * 3, [0] * 3, implementation)
    step.commit(committed, slots, [4, 3, row], targets, [row] * 3, implementation)
    assert torch.equal(committed[:, [1, 6]], expected[:, [4, 2]])
    assert committed[:, [3, 5]].isnan().all()


@both
def test_padding_and_foreign_slots(device, implementation):
    step = Verify(4, 3, 2, 32, torch.bfloat16, device)
    slots = [5, -1, 0, 2]
    states = stacked_states(step, 8, [0, 2, 5], 2, 32)
    output = step.verify(states, slots, implementation).unflatten(1, (4, 3))
    assert (output[:, 1] == 0).all() and (output[:, [0, 2, 3]] != 0).all() and output.isfinite().all()
    kept = step.stash[:, :12].unflatten(1, (4, 3))
    assert kept[:, 1].isnan().all() and kept[:, [0, 2, 3]].isfinite().all()
    before = states.clone()
    step.commit(states, slots, [2, 3, 0, 1], [-1, 3, -1, -1], [0, 2, 0, 0], implementation)
    assert states[:, [1, 3, 4, 6, 7]].isnan().all()
    assert torch.equal(states[:, 0], before[:, 0]) and not torch.equal(states[:, 5], before[:, 5])


@both
def test_no_requests(device, implementation):
    step = Verify(0, 4, 2, 32, torch.bfloat16, device)
    states = stacked_states(step, 2, [0], 2, 32)
    assert step.verify(states, [], implementation).shape == (2, 0, 2, 32)
    step.commit(states, [], [], [], [], implementation)


def test_rows_that_the_requests_do_not_share_evenly(device):
    step = Verify(2, 3, 2, 32, torch.bfloat16, device)
    states = stacked_states(step, 4, [0, 1], 2, 32)
    with pytest.raises(ValueError, match=r"q: expected T%B = 0, got shape \[6, 2, 32\] with B = 4"):
        step.verify(states, [0, 1, 2, 3], "reference")
    step.stash = step.stash[:, :5]
    with pytest.raises(ValueError, match="stash: expected 6 contiguous rows"):
        step.verify(states, [0, 1], "reference")
    with pytest.raises(ValueError, match="stash: expected 6 contiguous rows per layer"):
        step.commit(states, [0, 1], [1, 1], [-1, -1], [0, 0], "reference")


@gpu
@pytest.mark.parametrize(("requests", "rows"), [(1, 4), (32, 4), (48, 8)])
@dtypes
def test_at_real_size(device, requests, rows, dtype):
    test_rows_and_states_are_those_of_decode_steps(device, "triton", requests, rows, 32, 128, dtype)


@gpu
def test_slots_behind_two_billion_elements(device):
    step = Verify(1, 4, 32, 128, torch.bfloat16, device)
    near = stacked_states(step, 2, [0], 32, 128)
    far = torch.empty(2, 4104, 32, 128, 128, device=device)
    far[:, 4100] = near[:, 0]
    assert torch.equal(step.verify(far, [4100], "triton"), step.verify(near, [0], "triton"))
    step.commit(far, [4100], [3], [4101], [2], "triton")
    step.commit(near, [0], [3], [1], [2], "triton")
    assert torch.equal(far[:, 4100:4102], near)


@gpu
def test_graph_replay_is_the_eager_step(device):
    step = Verify(8, 4, 32, 128, torch.bfloat16, device, layers=1)
    states = stacked_states(step, 20, list(range(12)), 32, 128)
    norm_rope = *step.weights, step.positions, step.inv_freq, EPS
    slots = ints(range(8), device)
    arguments = *step.qkv[0], *norm_rope, states[0], slots, step.stash[0], step.log_decay, SCALE
    lightning_verify(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = lightning_verify(*arguments)
    slots.copy_(ints([11, 3, -1, 0, 7, -1, 2, 9], device))
    output.fill_(torch.nan)
    graph.replay()
    assert torch.equal(output, lightning_verify(*arguments))
