"""Paged inputs for operator tests: requests scattered over shuffled pages of a poisoned pool."""

import torch
from sala_kernels.layout import PagedBatch, SparseGeometry

DENSE = 2**31 - 1  # as the position from which on blocks are selected


def make_batch(
    lengths: list[int],
    new_tokens: list[int],
    geometry: SparseGeometry,
    device: str,
    sparse_from: list[int] | None = None,
) -> tuple[PagedBatch, int]:
    """A batch whose request b has lengths[b] tokens, the last new_tokens[b] of them as queries.

    Returns the batch and the number of pages; page 0 belongs to nobody, as in the serving engine.
    """
    block = geometry.block_size
    blocks = [-(-length // block) for length in lengths]
    pages = 1 + torch.randperm(sum(blocks) + 3)
    token_slots = torch.zeros(len(lengths) + 2, (max(blocks) + 1) * block, dtype=torch.int32)
    request_rows = 1 + torch.randperm(len(lengths) + 1)[: len(lengths)]
    for row, count, start in zip(request_rows, blocks, torch.tensor([0, *blocks]).cumsum(0), strict=False):
        slots = pages[start : start + count, None] * block + torch.arange(block)
        token_slots[row, : count * block] = slots.flatten().int()
    batch = PagedBatch(
        query_start=torch.tensor([0, *new_tokens], device=device).cumsum(0).int(),
        kv_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
        sparse_from=torch.tensor(sparse_from or [0] * len(lengths), dtype=torch.int32, device=device),
        request_rows=request_rows.to(device),
        token_slots=token_slots.to(device),
        max_query_tokens=max(new_tokens),
        max_kv_tokens=max(lengths),
    )
    return batch, len(pages) + 1


def fill_pool(batch: PagedBatch, num_pages: int, geometry: SparseGeometry, kv_heads: int, head_dim: int):
    """Random keys and values [slots, Hkv, D] float64 for the batch's tokens; every other slot is NaN."""
    shape = (num_pages * geometry.block_size, kv_heads, head_dim)
    pools = []
    for _ in range(2):
        pool = torch.full(shape, torch.nan, dtype=torch.float64, device=batch.kv_lens.device)
        for request in range(batch.size):
            slots = batch.slots(request)
            pool[slots] = torch.randn(len(slots), kv_heads, head_dim, dtype=torch.float64).to(pool.device)
        pools.append(pool)
    return pools


def empty_compressed(num_pages: int, geometry: SparseGeometry, kv_heads: int, head_dim: int, like: torch.Tensor):
    """A poisoned compressed pool [pages, Hkv, page_rows, D]."""
    shape = (num_pages, kv_heads, geometry.page_rows, head_dim)
    return torch.full(shape, torch.nan, dtype=like.dtype, device=like.device)


def relative_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """‖actual − exact‖ / ‖exact‖, in float64; NaN in ``actual`` gives NaN, which passes no comparison."""
    actual, exact = actual.double(), exact.double()
    return float((actual - exact).norm() / exact.norm().clamp_min(1e-30))
