"""Attention of tiles of rows, which share the loads of keys and values.

Rows that attend to every block up to their own walk through all of them. The other rows of a tile walk through the
blocks that several of them chose; their results are parts, to which each row adds the rest of its blocks.
"""

import torch
import triton
import triton.language as tl

from sala_kernels.layout import PagedBatch, SparseGeometry
from sala_kernels.row_tiles import MIN_DOT_ROWS, load_queries, locate_tile, tile_count
from sala_kernels.sparse_attention.common import attend, attends_to_all, constants, count_ids, launch_arguments
from sala_kernels.sparse_attention.shared_lists import MAX_TILE, SharedLists

TILE_ROWS = 64  # queries times heads: with twice as many, a program's registers do not suffice


def tile_queries(queries: torch.Tensor, keys: torch.Tensor) -> int:
    """Queries per tile."""
    heads = triton.next_power_of_2(queries.shape[1] // keys.shape[1])
    return min(max(1, TILE_ROWS // heads), MAX_TILE)


def attend_tiles(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_ids: torch.Tensor,
    output: torch.Tensor,
    batch: PagedBatch,
    geometry: SparseGeometry,
    scale: float,
    lists: SharedLists | None = None,
    lse: torch.Tensor | None = None,
) -> None:
    """Fill ``output`` [T, Hq, D] of the rows that attend to every block up to their own; with ``lists`` of the others.

    These get parts, from the shared blocks of tiles, and the base-2 log-sum-exps ``lse`` [T, Hq] of them, both float32:
    0 and −inf for rows without a shared block.
    """
    tokens, query_heads, _ = queries.shape
    kv_heads = keys.shape[1]
    group, tile = query_heads // kv_heads, tile_queries(queries, keys)
    heads = max(triton.next_power_of_2(group), MIN_DOT_ROWS // tile)
    _tiles_kernel[(tile_count(tokens, batch.size, tile), kv_heads)](
        queries,
        keys,
        values,
        block_ids,
        output,
        lse,
        *([None] * 3 if lists is None else lists[:3]),
        *launch_arguments(queries, keys, values, block_ids, batch, scale),
        *output.stride(),
        *([0] * 2 if lists is None else lists.blocks.stride()[:2]),
        TILE=tile,
        HEADS=heads,
        GROUP=group,
        SHARED=lists is not None,
        **constants(keys, geometry),
        num_warps=4,
        num_stages=3 if keys.element_size() == 2 else 1,
    )


@triton.jit(do_not_specialize=["requests", "tokens"])
def _tiles_kernel(
    p_queries,
    p_keys,
    p_values,
    p_ids,
    p_output,
    p_lse,
    p_blocks,
    p_members,
    p_counts,
    p_query_start,
    p_kv_lens,
    p_sparse_from,
    p_request_rows,
    p_token_slots,
    token_slots_stride,
    requests,
    tokens,
    scale,
    query_token_stride,
    query_head_stride,
    query_dim_stride,
    key_slot_stride,
    key_head_stride,
    key_dim_stride,
    value_slot_stride,
    value_head_stride,
    value_dim_stride,
    ids_token_stride,
    ids_head_stride,
    ids_stride,
    output_token_stride,
    output_head_stride,
    output_dim_stride,
    tile_stride,
    tile_head_stride,
    TILE: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    K_SEL: tl.constexpr,
    K_SEL_PADDED: tl.constexpr,
    D: tl.constexpr,
):
    i_tile, i_kv_head = tl.program_id(0), tl.program_id(1)
    i_request, i_row, count, position = locate_tile(i_tile, p_query_start, p_kv_lens, requests, 0, tokens, TILE)
    if count <= 0:
        return
    o_query = tl.arange(0, TILE)
    m_sparse = position + o_query >= tl.load(p_sparse_from + i_request)
    p_list = p_ids + i_row.to(tl.int64) * ids_token_stride + i_kv_head * ids_head_stride
    b_listed = count_ids(p_list, ids_token_stride, ids_stride, m_sparse, count, TILE, K_SEL, K_SEL_PADDED)
    m_all = attends_to_all(m_sparse, b_listed, position + o_query, BLOCK)
    m_query = (o_query < count) & (m_all != SHARED)
    last = tl.max(tl.where(m_query, position + o_query, -1), 0)
    if last < 0:
        return

    b_queries = load_queries(
        p_queries,
        i_row,
        count,
        i_kv_head,
        query_token_stride,
        query_head_stride,
        query_dim_stride,
        GROUP,
        TILE,
        HEADS,
        D,
    )
    p_tokens = p_token_slots + tl.load(p_request_rows + i_request).to(tl.int64) * token_slots_stride
    M: tl.constexpr = TILE * HEADS
    ALL: tl.constexpr = (1 << TILE) - 1 if TILE < 32 else -1  # members as an int32
    o_m = tl.arange(0, M)
    o_query_m = o_m // HEADS
    o_position = position + tl.minimum(o_query_m, count - 1)
    b_output = tl.zeros([M, D], tl.float32)
    b_max = tl.full([M], float("-inf"), tl.float32)
    b_sum = tl.zeros([M], tl.float32)
    PARTS: tl.constexpr = BLOCK // TOKENS
    if SHARED:
        o_list = i_tile.to(tl.int64) * tile_stride + i_kv_head * tile_head_stride
        p_blocks, p_members = p_blocks + o_list, p_members + o_list
        end = tl.load(p_counts + i_tile * tl.num_programs(1) + i_kv_head) * PARTS
        next_token = tl.load(p_blocks, mask=end > 0, other=0) * BLOCK
    else:
        end, next_token = last // TOKENS + 1, 0
    next_slot = tl.load(p_tokens + next_token)
    for i_part in range(0, end):
        token, slot = next_token, next_slot
        if SHARED:
            i_next = i_part + 1
            members = tl.load(p_members + i_part // PARTS)
            o_seen = tl.where((members >> o_query_m) & 1 != 0, o_position, -1)
            seen_by_all = tl.where(members == ALL, position + 1, 0)
            next_block = tl.load(p_blocks + i_next // PARTS, mask=i_next < end, other=0)
            next_token = next_block * BLOCK + i_next % PARTS * TOKENS
        else:
            o_seen, seen_by_all = o_position, position + 1
            next_token = tl.minimum(token + TOKENS, last)
        next_slot = tl.load(p_tokens + next_token)  # a step ahead, so that the loads of keys need not wait for it
        b_output, b_max, b_sum = attend(
            b_queries,
            b_output,
            b_max,
            b_sum,
            p_keys + i_kv_head * key_head_stride,
            p_values + i_kv_head * value_head_stride,
            slot,
            token,
            o_seen,
            seen_by_all,
            scale,
            key_slot_stride,
            key_dim_stride,
            value_slot_stride,
            value_dim_stride,
            TOKENS,
            D,
        )

    o_head, o_dim = o_m % HEADS, tl.arange(0, D)
    m_row = tl.reshape(tl.broadcast_to(m_query.to(tl.int32)[:, None], [TILE, HEADS]), [M]) != 0
    m_row = m_row & (o_head < GROUP)
    o_row = (i_row + o_query_m).to(tl.int64)
    p_head = p_output + o_row * output_token_stride + (i_kv_head * GROUP + o_head) * output_head_stride
    if SHARED:
        tl.store(
            p_lse + o_row * tl.num_programs(1) * GROUP + i_kv_head * GROUP + o_head, b_max + tl.log2(b_sum), mask=m_row
        )
        b_sum = tl.where(b_sum > 0, b_sum, 1.0)
    b_output = (b_output / b_sum[:, None]).to(p_output.dtype.element_ty)
    tl.store(p_head[:, None] + o_dim[None, :] * output_dim_stride, b_output, mask=m_row[:, None])
