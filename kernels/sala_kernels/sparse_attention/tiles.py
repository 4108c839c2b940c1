"""Attention of tiles of rows that attend to every block up to their own; they share the loads of keys and values."""

import torch
import triton
import triton.language as tl

from sala_kernels.layout import PagedBatch, SparseGeometry
from sala_kernels.row_tiles import load_queries, locate_tile, tile_count, tile_shape
from sala_kernels.sparse_attention.common import attend, attends_to_all, constants, count_ids, launch_arguments


def attend_tiles(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_ids: torch.Tensor,
    output: torch.Tensor,
    batch: PagedBatch,
    geometry: SparseGeometry,
    scale: float,
) -> None:
    """Rows that attend to every block up to their own, in tiles."""
    tokens, query_heads, _ = queries.shape
    kv_heads = keys.shape[1]
    tile, heads = tile_shape(queries, kv_heads, batch.max_query_tokens)
    _tiles_kernel[(tile_count(tokens, batch.size, tile), kv_heads)](
        queries,
        keys,
        values,
        block_ids,
        output,
        *launch_arguments(queries, keys, values, block_ids, batch, scale),
        *output.stride(),
        TILE=tile,
        HEADS=heads,
        GROUP=query_heads // kv_heads,
        **constants(keys, geometry),
        num_warps=4 if tile * heads <= 64 else 8,
        num_stages=2 if keys.element_size() == 2 else 1,
    )


@triton.jit(do_not_specialize=["requests", "tokens"])
def _tiles_kernel(
    p_queries,
    p_keys,
    p_values,
    p_ids,
    p_output,
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
    TILE: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    K_SEL: tl.constexpr,
    K_SEL_PADDED: tl.constexpr,
    D: tl.constexpr,
):
    i_kv_head = tl.program_id(1)
    i_request, i_row, count, position = locate_tile(
        tl.program_id(0), p_query_start, p_kv_lens, requests, 0, tokens, TILE
    )
    if count <= 0:
        return
    o_query = tl.arange(0, TILE)
    m_sparse = position + o_query >= tl.load(p_sparse_from + i_request)
    p_list = p_ids + i_row.to(tl.int64) * ids_token_stride + i_kv_head * ids_head_stride
    b_listed = count_ids(p_list, ids_token_stride, ids_stride, m_sparse, count, TILE, K_SEL, K_SEL_PADDED)
    m_all = (o_query < count) & attends_to_all(m_sparse, b_listed, position + o_query, BLOCK)
    last = tl.max(tl.where(m_all, position + o_query, -1), 0)
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
    o_m = tl.arange(0, M)
    o_position = position + tl.minimum(o_m // HEADS, count - 1)
    b_output = tl.zeros([M, D], tl.float32)
    b_max = tl.full([M], float("-inf"), tl.float32)
    b_sum = tl.zeros([M], tl.float32)
    for token in range(0, last + 1, TOKENS):
        b_output, b_max, b_sum = attend(
            b_queries,
            b_output,
            b_max,
            b_sum,
            p_keys + i_kv_head * key_head_stride,
            p_values + i_kv_head * value_head_stride,
            tl.load(p_tokens + token),
            token,
            o_position,
            scale,
            key_slot_stride,
            key_dim_stride,
            value_slot_stride,
            value_dim_stride,
            TOKENS,
            D,
        )

    o_head, o_dim = o_m % HEADS, tl.arange(0, D)
    m_row = tl.reshape(tl.broadcast_to(m_all.to(tl.int32)[:, None], [TILE, HEADS]), [M]) != 0
    p_row = p_output + (i_row + o_m // HEADS).to(tl.int64)[:, None] * output_token_stride
    p_head = p_row + (i_kv_head * GROUP + o_head[:, None]) * output_head_stride + o_dim[None, :] * output_dim_stride
    b_output = (b_output / b_sum[:, None]).to(p_output.dtype.element_ty)
    tl.store(p_head, b_output, mask=(m_row & (o_head < GROUP))[:, None])
