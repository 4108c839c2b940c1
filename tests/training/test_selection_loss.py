"""The loss that teaches block scores: it falls as they follow attention, and knows only blocks that are chosen."""

import pytest
import torch
from sala_kernels.layout import SparseGeometry

from training.selection_loss import selection_loss

GEOMETRY = SparseGeometry(
    block_size=16, kernel_size=8, kernel_stride=4, init_blocks=1, local_blocks=1, selected_blocks=4, dense_len=0
)
TOKENS, HEADS, KV_HEADS, DIM = 128, 4, 2, 16
POSITIONS = torch.tensor([[127, 100, -1]])
SOUGHT = slice(64, 80)  # block 4, which both positions may choose or not


@pytest.fixture
def queries_and_keys() -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, but for queries that seek a direction, which no key has."""
    generator = torch.Generator().manual_seed(4)
    queries = torch.randn(1, TOKENS, HEADS, DIM, generator=generator)
    keys = torch.randn(1, TOKENS, KV_HEADS, DIM, generator=generator)
    queries[..., 0], keys[..., 0] = 12.0, 0.0
    return queries, keys


def loss(queries: torch.Tensor, keys: torch.Tensor, positions: torch.Tensor = POSITIONS) -> float:
    return float(selection_loss(queries, keys, positions, GEOMETRY))


def test_scores_follow_attention(queries_and_keys):
    """A key alone in its windows draws attention, which means hide; a block of such keys they show."""
    queries, keys = queries_and_keys
    keys[:, SOUGHT.start + 6, :, 0] = 4.0
    alone = loss(queries, keys)
    keys[:, SOUGHT, :, 0] = 4.0
    assert 0 <= loss(queries, keys) < alone / 2


def test_a_step_along_the_gradient_helps(queries_and_keys):
    queries, keys = queries_and_keys
    keys[:, SOUGHT.start + 6, :, 0] = 4.0
    changed = keys.clone().requires_grad_()
    selection_loss(queries, changed, POSITIONS, GEOMETRY).backward()
    assert loss(queries, keys - 1e-2 * changed.grad) < loss(queries, keys)


@pytest.mark.parametrize("forced", [slice(0, 12), slice(112, 128)], ids=["initial", "current"])
def test_forced_blocks_are_not_taught(queries_and_keys, forced):
    """However much attention goes to keys of blocks that are always selected, the others are judged by themselves.

    One head: the scores of several are weighted by all that each of them sees.
    """
    queries, keys = (tensor[:, :, :1].clone() for tensor in queries_and_keys)
    at = POSITIONS[:, :1]
    keys[:, SOUGHT, :, 0] = 1.0
    found = []
    for sought, other in ((0, 1), (1, 0)):
        keys[:, forced, :, sought], keys[:, forced, :, other] = 3.0, 0.0
        found.append(loss(queries, keys, at))
    assert found[0] == pytest.approx(found[1], rel=1e-4) and found[0] > 1e-3


def test_queries_that_do_not_count(queries_and_keys):
    queries, keys = queries_and_keys
    keys[:, SOUGHT, :, 0] = 4.0
    assert loss(queries, keys) == pytest.approx(loss(queries, keys, POSITIONS[:, :2]))
    assert loss(queries, keys, torch.full((1, 2), -1)) == 0
