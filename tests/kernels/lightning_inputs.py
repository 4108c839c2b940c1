"""Inputs and checks shared by the tests of lightning attention."""

import pytest
import torch
from sala_kernels.lightning import Arguments, lightning_chunk, reference

from sala_sglang.config import alibi_slopes
from tests.kernels.interpreter import repair_short_floats
from tests.kernels.paging import relative_error
from tests.kernels.quick_interpreter import patch_once_per_launch

repair_short_floats()
patch_once_per_launch()
MIXED = [1, 150, 1, 64, 0, 65]  # rows per request: decode rows among prompts, chunk borders, nothing at all
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
gpu = pytest.mark.gpu


def make_inputs(tokens: int, heads: int, dim: int, dtype: torch.dtype, device: str):
    """q, k, v [T, H, D] as rows of projections of different width, and log_decay [H]."""
    q, k, v = (torch.randn(tokens, parts, heads, dim, device=device).to(dtype)[:, -1] for parts in (2, 3, 1))
    return q, k, v, -torch.tensor(alibi_slopes(heads), dtype=torch.float32, device=device)


def make_states(slots: int, used: list[int], heads: int, dim: int, device: str) -> torch.Tensor:
    """A pool whose unused slots are NaN; the used ones hold states as large as running ones."""
    states = torch.full((slots, heads, dim, dim), torch.nan, device=device)
    states[used] = 4 * torch.randn(len(used), heads, dim, dim, device=device)
    return states


def ints(values, device: str) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.int32, device=device)


def run_chunk(q, k, v, log_decay, states, slots, lengths, snapshots=None, scale=0.125, function=lightning_chunk, **how):
    """Output of the chunk form over requests of ``lengths`` rows; snapshots are (slot, tokens) per request."""
    snapshots = snapshots or [(-1, 0)] * len(slots)
    start = torch.tensor([0, *lengths]).cumsum(0)
    metadata = [ints(x, q.device) for x in (slots, start, *zip(*snapshots, strict=True))]
    return function(q, k, v, states, *metadata, log_decay, scale, **how)


def reference_in_any_dtype(*arguments) -> torch.Tensor:
    """The reference with states in any dtype, which the contract refuses."""
    return reference.lightning_chunk(Arguments(*arguments))


def closed_form(q, k, v, log_decay, initial, scale):
    """Output and final state of one request in float64, each row summed over all rows before it."""
    q, k, v, log_decay, initial = (x.double() for x in (q, k, v, log_decay, initial))
    row = torch.arange(len(q), device=q.device)
    distance = row[:, None] - row
    weight = (log_decay[:, None, None] * distance.clamp(min=0)).exp() * (distance >= 0)
    scores = torch.einsum("ihd,jhd->hij", q, k) * weight
    before = torch.einsum("ih,ihd,hde->ihe", (log_decay * (row + 1)[:, None]).exp(), q, initial)
    left = (log_decay * (len(q) - 1 - row)[:, None]).exp()
    state = (log_decay * len(q)).exp()[:, None, None] * initial + torch.einsum("jh,jhd,jhe->hde", left, k, v)
    return scale * (torch.einsum("hij,jhe->ihe", scores, v) + before), state


def check_against_exact(lengths, heads, dim, dtype, device):
    """The chunk kernels, per request, against float64; the bound is the error of the same steps in ``dtype``."""
    inputs = make_inputs(sum(lengths), heads, dim, dtype, device)
    slots = torch.randperm(len(lengths) + 2)[: len(lengths)].tolist()
    states = make_states(len(lengths) + 2, slots, heads, dim, device)
    exact_states, rough_states = states.double(), states.to(dtype, copy=True)
    wide = (x.double() for x in inputs[:3])
    exact = run_chunk(*wide, inputs[3], exact_states, slots, lengths, implementation="reference")
    rough = run_chunk(*inputs, rough_states, slots, lengths, function=reference_in_any_dtype)
    output = run_chunk(*inputs, states, slots, lengths, implementation="triton")

    # Another order of float32 sums may err more, and TF32 truncates where float16 rounds.
    factor = {torch.float32: 8, torch.float16: 2, torch.bfloat16: 1}[dtype]
    for slot, rows in zip(slots, torch.arange(sum(lengths)).split(lengths), strict=True):
        pairs = (output[rows], rough[rows], exact[rows]), (states[slot], rough_states[slot], exact_states[slot])
        for actual, derived, right in pairs:
            assert relative_error(actual, right) <= factor * relative_error(derived, right)
    assert relative_error(states[slots], exact_states[slots]) < {torch.float16: 1e-3}.get(dtype, 1e-4)
    if dtype == torch.bfloat16:
        # No product is rounded to bfloat16, so the rounding of the output is all that is lost.
        assert relative_error(output, exact) <= 1.1 * relative_error(exact.to(dtype), exact)
