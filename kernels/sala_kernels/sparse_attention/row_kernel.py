"""Attention of rows by themselves: what is left of a prefill row's list, or all of a decode row in several programs."""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, meet_predecessor
from sala_kernels.layout import PagedBatch, SparseGeometry
from sala_kernels.row_tiles import MIN_DOT_ROWS, decode_splits, load_queries, locate_tile
from sala_kernels.sparse_attention.common import attend, attends_to_all, constants, count_ids, launch_arguments

FEW_ROWS_SPLITS, MANY_ROWS_SPLITS = 32, 8  # programs that share a decode row's blocks


def attend_decode(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_ids: torch.Tensor,
    batch: PagedBatch,
    geometry: SparseGeometry,
    scale: float,
) -> torch.Tensor:
    """sparse_attention of a step with one row per request. Several programs divide the blocks of a row."""
    output = queries.new_empty(queries.shape)
    tokens, query_heads, head_dim = queries.shape
    splits = decode_splits(tokens, FEW_ROWS_SPLITS, MANY_ROWS_SPLITS)
    parts = queries.new_empty((splits, tokens, query_heads, head_dim), dtype=torch.float32)
    lse = parts.new_empty(parts.shape[:3])
    attend_rows(queries, keys, values, block_ids, block_ids, parts, lse, None, batch, geometry, scale)
    _merge_kernel[(tokens, query_heads)](
        parts,
        lse,
        output,
        tokens,
        *output.stride(),
        SPLITS=splits,
        D=head_dim,
        num_warps=4,
        **dependent_launch(queries.device),
    )
    return output


def attend_rows(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_ids: torch.Tensor,
    rest: torch.Tensor,
    parts: torch.Tensor,
    lse: torch.Tensor,
    output: torch.Tensor | None,
    batch: PagedBatch,
    geometry: SparseGeometry,
    scale: float,
) -> None:
    """Rows by themselves. With ``output`` [T, Hq, D] those that do not attend to every block up to their own: they add
    the blocks of ``rest`` [T, Hkv, K_SEL] to a part [1, T, Hq, D] that they find. Without it all rows, whose blocks
    they divide over several parts. Parts have base-2 log-sum-exps ``lse`` [splits, T, Hq]."""
    splits, tokens, query_heads, _ = parts.shape
    kv_heads = keys.shape[1]
    group = query_heads // kv_heads
    _rows_kernel[(tokens, kv_heads, splits)](
        queries,
        keys,
        values,
        block_ids,
        rest,
        parts,
        lse,
        output,
        *launch_arguments(queries, keys, values, block_ids, batch, scale),
        *rest.stride(),
        *(parts.stride()[1:] if output is None else output.stride()),
        TILE=1,
        HEADS=max(MIN_DOT_ROWS, triton.next_power_of_2(group)),
        GROUP=group,
        DECODE=output is None,
        **constants(keys, geometry),
        **dependent_launch(queries.device),
        num_warps=4 if output is None else 2,
        num_stages=2 if keys.element_size() == 2 else 1,
    )


@triton.jit(do_not_specialize=["requests", "tokens"])
def _rows_kernel(
    p_queries,
    p_keys,
    p_values,
    p_ids,
    p_rest,
    p_parts,
    p_lse,
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
    rest_token_stride,
    rest_head_stride,
    rest_stride,
    output_token_stride,
    output_head_stride,
    output_dim_stride,
    TILE: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DECODE: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    K_SEL: tl.constexpr,
    K_SEL_PADDED: tl.constexpr,
    D: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    meet_predecessor(DEPENDENT)
    i_kv_head, i_split = tl.program_id(1), tl.program_id(2)
    i_request, i_row, count, position = locate_tile(
        tl.program_id(0), p_query_start, p_kv_lens, requests, 0, tokens, TILE
    )
    if count <= 0:
        return
    sparse_from = tl.load(p_sparse_from + i_request)
    sparse, m_sparse = position >= sparse_from, position + tl.arange(0, TILE) >= sparse_from
    p_list = p_ids + i_row.to(tl.int64) * ids_token_stride + i_kv_head * ids_head_stride
    p_rest += i_row.to(tl.int64) * rest_token_stride + i_kv_head * rest_head_stride
    listed = tl.sum(count_ids(p_list, ids_token_stride, ids_stride, m_sparse, count, TILE, K_SEL, K_SEL_PADDED), 0)
    if DECODE:
        blocks = tl.where(sparse, listed, position // BLOCK + 1)
    else:
        if attends_to_all(sparse, listed, position, BLOCK):
            return
        blocks = tl.sum(count_ids(p_rest, rest_token_stride, rest_stride, m_sparse, count, TILE, K_SEL, K_SEL_PADDED))

    o_head, o_dim = tl.arange(0, HEADS), tl.arange(0, D)
    m_head = o_head < GROUP
    share = tl.cdiv(blocks, tl.num_programs(2))
    begin, end = i_split * share, tl.minimum((i_split + 1) * share, blocks)
    i_part_row = (i_split * tokens + i_row).to(tl.int64) * tl.num_programs(1) * GROUP + i_kv_head * GROUP
    p_part_lse = p_lse + i_part_row + o_head
    p_part = p_parts + (i_part_row + o_head)[:, None] * D + o_dim[None, :]
    if DECODE:
        if begin >= end:
            tl.store(p_part_lse, float("-inf"), mask=m_head)
            return
        b_output = tl.zeros([HEADS, D], tl.float32)
        b_max = tl.full([HEADS], float("-inf"), tl.float32)
    else:
        b_output = tl.load(p_part, mask=m_head[:, None], other=0.0)
        b_max = tl.load(p_part_lse, mask=m_head, other=float("-inf"))
    b_sum = tl.where(b_max > float("-inf"), 1.0, 0.0)

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
    o_position = tl.zeros([HEADS], tl.int32) + position
    PARTS: tl.constexpr = BLOCK // TOKENS
    next_block = tl.load(p_rest + begin * rest_stride, mask=sparse & (begin < end), other=begin)
    next_slot = tl.load(p_tokens + next_block * BLOCK)
    for i_part in range(begin * PARTS, end * PARTS):
        token, slot = next_block * BLOCK + i_part % PARTS * TOKENS, next_slot + i_part % PARTS * TOKENS
        i_next = (i_part + 1) // PARTS
        next_block = tl.load(p_rest + i_next * rest_stride, mask=sparse & (i_next < end), other=0)
        next_block = tl.where(sparse, next_block, tl.minimum(i_next, end - 1))
        next_slot = tl.load(p_tokens + next_block * BLOCK)  # a step ahead: the loads of keys need not wait for it
        b_output, b_max, b_sum = attend(
            b_queries,
            b_output,
            b_max,
            b_sum,
            p_keys + i_kv_head * key_head_stride,
            p_values + i_kv_head * value_head_stride,
            slot,
            token,
            o_position,
            position + 1,
            scale,
            key_slot_stride,
            key_dim_stride,
            value_slot_stride,
            value_dim_stride,
            TOKENS,
            D,
        )

    b_output = b_output / b_sum[:, None]
    if DECODE:
        tl.store(p_part, b_output, mask=m_head[:, None])
        tl.store(p_part_lse, b_max + tl.log2(b_sum), mask=m_head)
    else:
        p_row = p_output + i_row.to(tl.int64) * output_token_stride + (i_kv_head * GROUP + o_head) * output_head_stride
        b_output = b_output.to(p_output.dtype.element_ty)
        tl.store(p_row[:, None] + o_dim[None, :] * output_dim_stride, b_output, mask=m_head[:, None])


@triton.jit(do_not_specialize=["tokens"])
def _merge_kernel(
    p_parts,
    p_lse,
    p_output,
    tokens,
    token_stride,
    head_stride,
    dim_stride,
    SPLITS: tl.constexpr,
    D: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Mean of the parts [SPLITS, T, Hq, D], weighted by the sums behind ``lse`` [SPLITS, T, Hq]; −inf: no part."""
    meet_predecessor(DEPENDENT)
    i_row, i_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_dim = tl.arange(0, D)
    o_part = (tl.arange(0, SPLITS) * tokens + i_row) * tl.num_programs(1) + i_head
    b_lse = tl.load(p_lse + o_part)
    b_weights = tl.exp2(b_lse - tl.max(b_lse, 0))
    m_part = b_lse > float("-inf")
    b_parts = tl.load(p_parts + o_part[:, None] * D + o_dim[None, :], mask=m_part[:, None], other=0.0)
    b_output = tl.sum(b_parts * b_weights[:, None], 0) / tl.sum(b_weights, 0)
    p_row = p_output + i_row * token_stride + i_head * head_stride
    tl.store(p_row + o_dim * dim_stride, b_output.to(p_output.dtype.element_ty))
