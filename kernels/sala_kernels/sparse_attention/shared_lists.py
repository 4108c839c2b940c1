"""Which blocks the rows of a tile share: lists for the tile, and for each row what is left of its own."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from sala_kernels.kernel_arguments import batch_pointers, with_strides
from sala_kernels.layout import PagedBatch, SparseGeometry
from sala_kernels.row_tiles import locate_tile, tile_count
from sala_kernels.sparse_attention.common import attends_to_all, count_ids

# From so many rows on it is cheaper to take in a block for a whole tile than for the rows one by one. Where rows have
# little in common, their own programs have enough to do to be fast, and more sharers are needed.
SHARERS, SHARERS_OF_STRANGERS = 2, 3
MAX_TILE = 32  # rows of a tile are bits of an int32


class SharedLists(NamedTuple):
    """blocks, members: [tiles, Hkv, capacity] int32, ids of shared blocks and the rows of the
    tile that attend to them as bits. counts: [tiles, Hkv] int32. rest: [T, Hkv, K_SEL] int32, a row's other blocks in
    ascending order, −1 after the last one; undefined for rows that attend to every block up to their own."""

    blocks: torch.Tensor
    members: torch.Tensor
    counts: torch.Tensor
    rest: torch.Tensor


def shared_lists(block_ids: torch.Tensor, batch: PagedBatch, geometry: SparseGeometry, tile: int) -> SharedLists:
    """Lists for tiles of ``tile`` consecutive rows, at most MAX_TILE, from the lists of rows [T, Hkv, K_SEL]."""
    tokens, kv_heads, selected = block_ids.shape
    tiles = tile_count(tokens, batch.size, tile)
    capacity = max(1, tile * selected // SHARERS)
    blocks = block_ids.new_empty((tiles, kv_heads, capacity))
    counts, rest = block_ids.new_empty((tiles, kv_heads)), block_ids.new_empty(block_ids.shape)
    lists = SharedLists(blocks, torch.empty_like(blocks), counts, rest)
    _shared_lists_kernel[(tiles, kv_heads)](
        with_strides(block_ids),
        with_strides(blocks),
        lists.members,
        counts,
        with_strides(rest),
        batch_pointers(batch),
        batch.size,
        tokens,
        TILE=tile,
        SHARERS=SHARERS,
        SHARERS_OF_STRANGERS=SHARERS_OF_STRANGERS,
        BLOCK=geometry.block_size,
        K_SEL=selected,
        K_SEL_PADDED=triton.next_power_of_2(selected),
        STEPS=(selected - 1).bit_length(),
        num_warps=4,
    )
    return lists


@triton.jit(do_not_specialize=["requests", "tokens"])
def _shared_lists_kernel(
    ids,
    blocks,
    p_members,
    p_counts,
    rest,
    batch,
    requests,
    tokens,
    TILE: tl.constexpr,
    SHARERS: tl.constexpr,
    SHARERS_OF_STRANGERS: tl.constexpr,
    BLOCK: tl.constexpr,
    K_SEL: tl.constexpr,
    K_SEL_PADDED: tl.constexpr,
    STEPS: tl.constexpr,
):
    i_tile, i_kv_head = tl.program_id(0), tl.program_id(1)
    i_request, i_row, count, position = locate_tile(i_tile, batch, requests, 0, tokens, TILE)
    p_count = p_counts + i_tile * tl.num_programs(1) + i_kv_head
    if count <= 0:
        tl.store(p_count, 0)
        return
    o_query, o_id = tl.arange(0, TILE), tl.arange(0, K_SEL_PADDED)
    m_sparse = position + o_query >= tl.load(batch.sparse_from + i_request)
    b_listed = count_ids(ids, i_row, i_kv_head, m_sparse, count, TILE, K_SEL, K_SEL_PADDED)
    # Rows that attend to every block up to their own share tiles of another kind.
    b_listed = tl.where(attends_to_all(m_sparse, b_listed, position + o_query, BLOCK), 0, b_listed)
    if tl.max(b_listed, 0) == 0:
        tl.store(p_count, 0)
        return
    m_id = o_id[None, :] < b_listed[:, None]
    p_ids, id_strides = ids
    p_list = p_ids + i_row.to(tl.int64) * id_strides[0] + i_kv_head * id_strides[1]
    p_row = p_list + o_query.to(tl.int64)[:, None] * id_strides[0]
    b_ids = tl.load(p_row + o_id[None, :] * id_strides[2], mask=m_id, other=-1)

    b_members = tl.zeros([TILE, K_SEL_PADDED], tl.int32)
    b_sharers = tl.zeros([TILE, K_SEL_PADDED], tl.int32)
    for i_query in range(0, count):
        listed = tl.sum(tl.where(o_query == i_query, b_listed, 0), 0)
        m_found = m_id & _is_listed(b_ids, p_list + i_query * id_strides[0], id_strides[2], listed, STEPS)
        b_members |= tl.where(m_found, 1 << i_query, 0)
        b_sharers += m_found.to(tl.int32)

    own = tl.sum(tl.sum((m_id & (b_sharers < SHARERS)).to(tl.int32), 1), 0)
    sharers = tl.where(2 * own > tl.sum(b_listed, 0), SHARERS_OF_STRANGERS, SHARERS)
    m_shared = m_id & (b_sharers >= sharers)
    # Of the rows that share a block the first one lists it.
    m_first = m_shared & ((b_members & ((1 << o_query[:, None]) - 1)) == 0)
    b_first = tl.reshape(m_first, [TILE * K_SEL_PADDED])
    o_shared = tl.cumsum(b_first.to(tl.int32), 0) - 1
    p_blocks, tile_strides = blocks
    o_list = i_tile.to(tl.int64) * tile_strides[0] + i_kv_head * tile_strides[1] + o_shared
    tl.store(p_blocks + o_list, tl.reshape(b_ids, [TILE * K_SEL_PADDED]), mask=b_first)
    tl.store(p_members + o_list, tl.reshape(b_members, [TILE * K_SEL_PADDED]), mask=b_first)
    tl.store(p_count, tl.sum(b_first.to(tl.int32), 0))

    m_rest = m_id & (b_sharers < sharers)
    o_rest = tl.cumsum(m_rest.to(tl.int32), 1) - 1
    b_end = tl.sum(m_rest.to(tl.int32), 1)
    p_rest, rest_strides = rest
    p_rest += (i_row + o_query).to(tl.int64)[:, None] * rest_strides[0] + i_kv_head * rest_strides[1]
    m_behind = (o_query < count)[:, None] & (o_id[None, :] >= b_end[:, None]) & (o_id < K_SEL)[None, :]
    tl.store(p_rest + o_rest, b_ids, mask=m_rest)
    tl.store(p_rest + o_id[None, :], tl.full([TILE, K_SEL_PADDED], -1, tl.int32), mask=m_behind)


@triton.jit
def _is_listed(b_ids, p_list, stride, listed, STEPS: tl.constexpr):
    """Whether each id is among the first ``listed`` of the ascending list at ``p_list``, at most 2^STEPS."""
    b_place = tl.zeros_like(b_ids)
    for i_step in tl.static_range(STEPS):
        b_probe = b_place + (1 << (STEPS - 1 - i_step))
        m_probe = b_probe <= listed
        b_before = tl.load(p_list + (b_probe - 1) * stride, mask=m_probe, other=0)
        b_place = tl.where(m_probe & (b_before < b_ids), b_probe, b_place)
    return tl.load(p_list + b_place * stride, mask=b_place < listed, other=-1) == b_ids
