"""Attention of tiles of rows, which share the loads of keys and values.

Rows that attend to every block up to their own walk through all of them. The other rows of a tile walk through the
blocks that several of them chose; their results are parts, to which each row adds the rest of its blocks.
"""

import torch
import triton
import triton.language as tl

from sala_kernels.kernel_arguments import tokens_of, with_strides
from sala_kernels.row_tiles import MIN_DOT_ROWS, load_queries, locate_tile, tile_count
from sala_kernels.sparse_attention import Arguments
from sala_kernels.sparse_attention.common import (
    attend,
    attends_to_all,
    constants,
    count_ids,
    launch_arguments,
    logit_scale,
    loop_stages,
    scale_output,
)
from sala_kernels.sparse_attention.shared_lists import MAX_TILE, SharedLists

TILE_ROWS = 64  # queries times heads: with twice as many, a program's registers do not suffice


def tile_queries(group: int) -> int:
    """Queries per tile, for ``group`` query heads per KV head."""
    return min(max(1, TILE_ROWS // triton.next_power_of_2(group)), MAX_TILE)


def attend_tiles(
    arguments: Arguments,
    output: torch.Tensor,
    lists: SharedLists | None = None,
    lse: torch.Tensor | None = None,
) -> None:
    """Fill ``output`` [T, Hq, D] of the rows that attend to every block up to their own; with ``lists`` of the others.

    These get parts, from the shared blocks of tiles, and the base-2 log-sum-exps ``lse`` [T, Hq] of them, both float32:
    0 and −inf for rows without a shared block. Parts are without the scale of values in FP8.
    """
    keys, group = arguments.keys, arguments.group
    tile = tile_queries(group)
    tiles = tile_count(len(arguments.queries), arguments.batch.size, tile)
    _tile_kernel[(tiles, keys.shape[1])](
        *launch_arguments(arguments),
        with_strides(output),
        lse,
        None if lists is None else (with_strides(lists.blocks), lists.members, lists.counts),
        TILE=tile,
        HEADS=max(triton.next_power_of_2(group), MIN_DOT_ROWS // tile),
        GROUP=group,
        SHARED=lists is not None,
        **constants(keys, arguments.geometry),
        num_warps=4,
        num_stages=loop_stages(keys, 3),
    )


@triton.jit(do_not_specialize=["requests", "tokens"])
def _tile_kernel(
    queries,
    keys,
    values,
    ids,
    batch,
    requests,
    tokens,
    scale,
    p_kv_scales,
    output,
    p_lse,
    lists,
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
    i_request, i_row, count, position = locate_tile(i_tile, batch, requests, 0, tokens, TILE)
    if count <= 0:
        return
    o_query = tl.arange(0, TILE)
    m_sparse = position + o_query >= tl.load(batch.sparse_from + i_request)
    b_listed = count_ids(ids, i_row, i_kv_head, m_sparse, count, TILE, K_SEL, K_SEL_PADDED)
    m_all = attends_to_all(m_sparse, b_listed, position + o_query, BLOCK)
    m_query = (o_query < count) & (m_all != SHARED)
    last = tl.max(tl.where(m_query, position + o_query, -1), 0)
    if last < 0:
        return

    scale = logit_scale(scale, p_kv_scales, i_kv_head)
    b_queries = load_queries(queries, i_row, count, i_kv_head, GROUP, TILE, HEADS, D)
    p_tokens = tokens_of(batch, i_request)
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
        blocks, p_members, p_counts = lists
        p_blocks, tile_strides = blocks
        o_list = i_tile.to(tl.int64) * tile_strides[0] + i_kv_head * tile_strides[1]
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
            keys,
            values,
            i_kv_head,
            slot,
            token,
            o_seen,
            seen_by_all,
            scale,
            TOKENS,
            D,
        )

    o_head, o_dim = o_m % HEADS, tl.arange(0, D)
    m_row = tl.reshape(tl.broadcast_to(m_query.to(tl.int32)[:, None], [TILE, HEADS]), [M]) != 0
    m_row = m_row & (o_head < GROUP)
    o_row = (i_row + o_query_m).to(tl.int64)
    p_output, output_strides = output
    p_head = p_output + o_row * output_strides[0] + (i_kv_head * GROUP + o_head) * output_strides[1]
    if SHARED:
        tl.store(
            p_lse + o_row * tl.num_programs(1) * GROUP + i_kv_head * GROUP + o_head, b_max + tl.log2(b_sum), mask=m_row
        )
        b_sum = tl.where(b_sum > 0, b_sum, 1.0)
    else:
        b_output = scale_output(b_output, p_kv_scales, i_kv_head, tl.num_programs(1))
    b_output = (b_output / b_sum[:, None]).to(p_output.dtype.element_ty)
    tl.store(p_head[:, None] + o_dim[None, :] * output_strides[2], b_output, mask=m_row[:, None])
