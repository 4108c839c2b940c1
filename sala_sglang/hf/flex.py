"""Block-sparse attention with gradients on a GPU, by torch's FlexAttention."""

from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

TILE = 128  # rows, and keys, that FlexAttention's kernels take at a time


def serves(queries: torch.Tensor) -> bool:
    """Whether ``attend`` is the fastest way for queries [T, Hq, D]: compiled kernels want a GPU, and a tile of rows."""
    return queries.is_cuda and queries.dtype.itemsize == 2 and len(queries) >= TILE


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, chosen: torch.Tensor, block_size: int
) -> torch.Tensor:
    """Causal attention of the last T of L tokens of one sequence to the chosen blocks of each.

    queries: [T, Hq, D], heads of one group adjacent; keys, values: [L, Hkv, D]. chosen: [T, Hkv, blocks] bool, blocks
    of ``block_size`` tokens, which divides 128. Returns [T, Hq, D] in the dtype of the queries, which is rounded to it
    inside as well; sums are float32. Source: FlexAttention, arXiv 2412.05496.
    """
    group, offset = queries.shape[1] // keys.shape[1], len(keys) - len(queries)

    def allowed(batch: torch.Tensor, head: torch.Tensor, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        return chosen[row, head // group, token // block_size] & (token <= row + offset)

    mask = _tiles(chosen, TILE // block_size, group, (len(queries), len(keys)), allowed)
    q, k, v = (x.transpose(0, 1)[None] for x in (queries, keys, values))
    function = _compiled() if queries.is_cuda else flex_attention
    return function(q, k, v, block_mask=mask, enable_gqa=group > 1)[0].transpose(0, 1)


def _tiles(chosen: torch.Tensor, blocks: int, group: int, lengths: tuple[int, int], allowed: Any) -> BlockMask:
    """Tiles in which a row has chosen a block; what of them each row sees is for ``allowed`` to say."""
    rows, _, number = chosen.shape
    padded = torch.nn.functional.pad(chosen, (0, -number % blocks, 0, 0, 0, -rows % TILE))
    used = padded.unflatten(2, (-1, blocks)).unflatten(0, (-1, TILE)).any(4).any(1)  # [row tiles, Hkv, key tiles]
    used = used.transpose(0, 1).repeat_interleave(group, 0)[None]
    count = used.sum(-1, dtype=torch.int32)
    order = used.int().argsort(dim=-1, descending=True, stable=True).int()
    return BlockMask.from_kv_blocks(count, order, BLOCK_SIZE=TILE, mask_mod=allowed, seq_lengths=lengths)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)
