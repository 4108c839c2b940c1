"""Attention of rows by themselves: what is left of a prefill row's list, or all of a decode row in several programs."""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.kernel_arguments import tokens_of, with_strides
from sala_kernels.row_tiles import MIN_DOT_ROWS, decode_splits, load_queries, locate_tile
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

FEW_ROWS_SPLITS, MANY_ROWS_SPLITS = 32, 8  # programs that share a decode row's blocks


def attend_decode(arguments: Arguments) -> torch.Tensor:
    """sparse_attention of a step with one row per request. Several programs divide the blocks of a row."""
    queries = arguments.queries
    output = queries.new_empty(queries.shape)
    tokens, query_heads, head_dim = queries.shape
    splits = decode_splits(tokens, FEW_ROWS_SPLITS, MANY_ROWS_SPLITS)
    parts = queries.new_empty((splits, tokens, query_heads, head_dim), dtype=torch.float32)
    lse = parts.new_empty(parts.shape[:3])
    attend_rows(arguments, arguments.block_ids, parts, lse, None)
    _merge_kernel[(tokens, query_heads)](
        parts,
        lse,
        with_strides(output),
        tokens,
        SPLITS=splits,
        D=head_dim,
        num_warps=4,
        **dependent_launch(queries.device),
    )
    return output


def attend_rows(
    arguments: Arguments, rest: torch.Tensor, parts: torch.Tensor, lse: torch.Tensor, output: torch.Tensor | None
) -> None:
    """Rows by themselves. With ``output`` [T, Hq, D] those that do not attend to every block up to their own: they add
    the blocks of ``rest`` [T, Hkv, K_SEL] to a part [1, T, Hq, D] that they find. Without it all rows, whose blocks
    they divide over several parts. Parts have base-2 log-sum-exps ``lse`` [splits, T, Hq]. Those that rows find are
    without the scale of values in FP8."""
    (splits, tokens), keys, group = parts.shape[:2], arguments.keys, arguments.group
    _row_kernel[(tokens, keys.shape[1], splits)](
        *launch_arguments(arguments),
        with_strides(rest),
        parts,
        lse,
        None if output is None else with_strides(output),
        TILE=1,
        HEADS=max(MIN_DOT_ROWS, triton.next_power_of_2(group)),
        GROUP=group,
        DECODE=output is None,
        **constants(keys, arguments.geometry),
        **dependent_launch(keys.device),
        num_warps=4 if output is None else 2,
        num_stages=loop_stages(keys, 2),
    )


@triton.jit(do_not_specialize=["requests", "tokens"])
def _row_kernel(
    queries,
    keys,
    values,
    ids,
    batch,
    requests,
    tokens,
    scale,
    p_kv_scales,
    rest,
    p_parts,
    p_lse,
    output,
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
    wait_for_predecessor(DEPENDENT)
    i_kv_head, i_split = tl.program_id(1), tl.program_id(2)
    i_request, i_row, count, position = locate_tile(tl.program_id(0), batch, requests, 0, tokens, TILE)
    if count <= 0:
        return
    sparse_from = tl.load(batch.sparse_from + i_request)
    sparse, m_sparse = position >= sparse_from, position + tl.arange(0, TILE) >= sparse_from
    listed = tl.sum(count_ids(ids, i_row, i_kv_head, m_sparse, count, TILE, K_SEL, K_SEL_PADDED), 0)
    if DECODE:
        blocks = tl.where(sparse, listed, position // BLOCK + 1)
    else:
        if attends_to_all(sparse, listed, position, BLOCK):
            return
        blocks = tl.sum(count_ids(rest, i_row, i_kv_head, m_sparse, count, TILE, K_SEL, K_SEL_PADDED), 0)

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

    scale = logit_scale(scale, p_kv_scales, i_kv_head)
    b_queries = load_queries(queries, i_row, count, i_kv_head, GROUP, TILE, HEADS, D)
    p_tokens = tokens_of(batch, i_request)
    p_rest, rest_strides = rest
    p_rest += i_row.to(tl.int64) * rest_strides[0] + i_kv_head * rest_strides[1]
    o_position = tl.zeros([HEADS], tl.int32) + position
    PARTS: tl.constexpr = BLOCK // TOKENS
    next_block = tl.load(p_rest + begin * rest_strides[2], mask=sparse & (begin < end), other=begin)
    next_slot = tl.load(p_tokens + next_block * BLOCK)
    for i_part in range(begin * PARTS, end * PARTS):
        token, slot = next_block * BLOCK + i_part % PARTS * TOKENS, next_slot + i_part % PARTS * TOKENS
        i_next = (i_part + 1) // PARTS
        next_block = tl.load(p_rest + i_next * rest_strides[2], mask=sparse & (i_next < end), other=0)
        next_block = tl.where(sparse, next_block, tl.minimum(i_next, end - 1))
        next_slot = tl.load(p_tokens + next_block * BLOCK)  # a step ahead: the loads of keys need not wait for it
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
            o_position,
            position + 1,
            scale,
            TOKENS,
            D,
        )

    b_output = scale_output(b_output / b_sum[:, None], p_kv_scales, i_kv_head, tl.num_programs(1))
    if DECODE:
        tl.store(p_part, b_output, mask=m_head[:, None])
        tl.store(p_part_lse, b_max + tl.log2(b_sum), mask=m_head)
    else:
        p_output, output_strides = output
        p_row = p_output + i_row.to(tl.int64) * output_strides[0] + (i_kv_head * GROUP + o_head) * output_strides[1]
        b_output = b_output.to(p_output.dtype.element_ty)
        tl.store(p_row[:, None] + o_dim[None, :] * output_strides[2], b_output, mask=m_head[:, None])


@triton.jit(do_not_specialize=["tokens"])
def _merge_kernel(
    p_parts,
    p_lse,
    output,
    tokens,
    SPLITS: tl.constexpr,
    D: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Mean of the parts [SPLITS, T, Hq, D], weighted by the sums behind ``lse`` [SPLITS, T, Hq]; −inf: no part."""
    wait_for_predecessor(DEPENDENT)
    i_row, i_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_dim = tl.arange(0, D)
    o_part = (tl.arange(0, SPLITS) * tokens + i_row) * tl.num_programs(1) + i_head
    b_lse = tl.load(p_lse + o_part)
    b_weights = tl.exp2(b_lse - tl.max(b_lse, 0))
    m_part = b_lse > float("-inf")
    b_parts = tl.load(p_parts + o_part[:, None] * D + o_dim[None, :], mask=m_part[:, None], other=0.0)
    b_output = tl.sum(b_parts * b_weights[:, None], 0) / tl.sum(b_weights, 0)
    p_output, strides = output
    p_row = p_output + i_row * strides[0] + i_head * strides[1]
    tl.store(p_row + o_dim * strides[2], b_output.to(p_output.dtype.element_ty))
