"""Steps of a draft model in torch: what each of them attends to."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from sala_sglang.speculation.torch_steps import TorchSteps

HEADS, DIM = 2, 4


@pytest.fixture
def steps() -> TorchSteps:
    runner = SimpleNamespace(device="cpu", req_to_token_pool=None, token_to_kv_pool=None)
    return TorchSteps(runner, 4)


def test_the_last_draft_needs_no_step(steps):
    """The first draft comes with the rows that were accepted, every other one from a step."""
    assert len(steps.attn_backends) == 3


@pytest.mark.parametrize("step", range(3))
def test_a_step_attends_to_those_before_it(steps, step):
    """Of two requests of 2 and 5 accepted tokens, whose pages lie anywhere."""
    generator = torch.Generator().manual_seed(step)
    keys, values = torch.randn(2, 32, HEADS, DIM, generator=generator)
    query = torch.randn(2, HEADS, DIM, generator=generator)
    slots = torch.randperm(32, generator=generator).view(2, 16)
    rows, lengths, output = torch.tensor([1, 0]), torch.tensor([2, 5]), torch.empty(2, HEADS, DIM)
    steps.attn_backends[step]._run_sdpa_forward_decode(query, output, keys, values, slots, rows, lengths, None)
    for request, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        seen = slots[row, : length + step + 1]
        one = query[request, :, None], keys[seen].transpose(0, 1), values[seen].transpose(0, 1)
        assert torch.allclose(output[request], scaled_dot_product_attention(*one)[:, 0], atol=1e-6)
