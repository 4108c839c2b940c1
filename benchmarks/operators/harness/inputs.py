"""Inputs, built on the device without loops over tokens: pages, random tensors and lists of chosen blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sala_kernels.layout import PagedBatch, SparseGeometry

from benchmarks.operators.harness.sizes import Sizes


@dataclass(frozen=True)
class Setting:
    """What the cases are built for: sizes, a device, and the bytes of its L2 cache (0 to disregard it)."""

    sizes: Sizes
    device: torch.device
    cache_bytes: int

    def random(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=dtype)

    def sets(self, set_bytes: int) -> int:
        """How many input sets of ``set_bytes`` are twice the cache, so that none is still there when its turn comes."""
        return max(1, -(-2 * self.cache_bytes // set_bytes))

    def query_start(self, rows: Sequence[int]) -> torch.Tensor:
        """Exclusive sums of the rows of requests, [B+1] int32."""
        return torch.tensor([0, *rows], device=self.device).cumsum(0).int()

    def paged(self, lengths: Sequence[int], rows: Sequence[int], sparse: bool = True) -> tuple[PagedBatch, int]:
        """Requests of ``lengths`` tokens whose last ``rows`` are this step's, over shuffled pages.

        Returns the batch and the number of pages of a pool for it, page 0 unused.
        """
        block, requests = self.sizes.geometry.block_size, len(lengths)
        kv_lens = torch.tensor(lengths, dtype=torch.int32, device=self.device)
        blocks = [-(-length // block) for length in lengths]
        used = torch.arange(max(blocks), device=self.device) < torch.tensor(blocks, device=self.device)[:, None]
        table = torch.zeros(used.shape, dtype=torch.int64, device=self.device)
        table[used] = 1 + torch.randperm(sum(blocks), device=self.device)
        slots = (table[..., None] * block + torch.arange(block, device=self.device)).flatten(1).int()
        batch = PagedBatch(
            query_start=self.query_start(rows),
            kv_lens=kv_lens,
            sparse_from=torch.full((requests,), 0 if sparse else max(lengths), dtype=torch.int32, device=self.device),
            request_rows=torch.arange(requests, device=self.device),
            token_slots=slots,
            max_query_tokens=max(rows),
            max_kv_tokens=max(lengths),
        )
        return batch, sum(blocks) + 1

    def kv_pool(self, pages: int) -> torch.Tensor:
        """Random keys or values [pool slots, Hkv, D]."""
        return self.random(pages * self.sizes.geometry.block_size, self.sizes.kv_heads, self.sizes.head_dim)

    def compressed_pool(self, pages: int) -> torch.Tensor:
        """Random compressed keys [pages, Hkv, page_rows, D]."""
        return self.random(pages, self.sizes.kv_heads, self.sizes.geometry.page_rows, self.sizes.head_dim)

    def queries(self, rows: int) -> torch.Tensor:
        return self.random(rows, self.sizes.query_heads, self.sizes.head_dim)


def block_lists(positions: torch.Tensor, kv_heads: int, geometry: SparseGeometry, share: float | None) -> torch.Tensor:
    """Lists as select_blocks returns them, [T, Hkv, K_SEL] int32, for neighbouring rows at ``positions`` [T].

    Forced blocks, and free picks among the blocks that are free for all rows. A row keeps ``share`` of the free picks
    of the row before and draws the others anew; None draws all of every row independently.
    """
    current = positions // geometry.block_size
    candidates = int(current[0]) - geometry.local_blocks - geometry.init_blocks
    picks = geometry.selected_blocks - geometry.init_blocks - geometry.local_blocks - 1
    shape = len(positions), kv_heads, picks
    if share is None:
        free = torch.rand(*shape[:2], candidates, device=positions.device).topk(picks).indices
    else:
        free = _shared_picks(shape, candidates, round(share * picks), positions.device)
    initial = torch.arange(geometry.init_blocks, device=positions.device)
    local = current[:, None] + torch.arange(-geometry.local_blocks, 1, device=positions.device)
    lists = (
        initial.expand(*shape[:2], -1),
        geometry.init_blocks + free.sort(-1).values,
        local[:, None].expand(-1, kv_heads, -1),
    )
    return torch.cat(lists, -1).int()


def _shared_picks(shape: tuple[int, int, int], candidates: int, kept: int, device: torch.device) -> torch.Tensor:
    """Distinct picks below ``candidates``, [T, Hkv, picks]; ``kept`` picks of each row are those of the row before.

    Pick i is one of the candidates i, i + picks, i + 2·picks, …, so that picks never collide. In each row the others
    than the kept ones move on by a random number of places, less than a whole round.
    """
    picks = shape[2]
    places = candidates // picks
    moved = torch.rand(shape, device=device).argsort(-1) >= kept
    steps = torch.randint(1, places, shape, device=device) * moved
    steps[0] = torch.randint(0, places, shape[1:], device=device)
    return steps.cumsum(0) % places * picks + torch.arange(picks, device=device)
