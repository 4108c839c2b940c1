"""Log-sum-exp of a row's logits over the visible K2 slots, the normaliser of its block scores."""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.kernel_arguments import batch_pointers, tokens_of, with_strides
from sala_kernels.row_tiles import LOG2_E, decode_splits, load_queries, locate_tile, tile_count, tile_shape
from sala_kernels.select_blocks import Arguments

TILE_SLOTS = 64  # K2 slots per step of the loop
FEW_ROWS_SPLITS, MANY_ROWS_SPLITS = 128, 32  # programs that share the context of a decode row


def coarse_lse(arguments: Arguments) -> torch.Tensor:
    """Base-2 log-sum-exp of the logits of visible K2 slots, in parts of the context, [splits, T, Hq] float32."""
    queries, compressed, batch, geometry, scale = arguments
    tokens, query_heads, head_dim = queries.shape
    kv_heads = compressed.shape[1]
    tile, heads = tile_shape(queries, kv_heads, batch.max_query_tokens)
    splits = decode_splits(tokens, FEW_ROWS_SPLITS, MANY_ROWS_SPLITS) if batch.max_query_tokens == 1 else 1
    lse = queries.new_empty((splits, tokens, query_heads), dtype=torch.float32)
    _coarse_lse_kernel[(tile_count(tokens, batch.size, tile), kv_heads, splits)](
        with_strides(queries),
        with_strides(compressed),
        lse,
        batch_pointers(batch),
        batch.size,
        tokens,
        scale * LOG2_E,
        COARSE_STRIDE=geometry.coarse_stride,
        COARSE_ROWS=geometry.coarse_rows,
        SLOTS=TILE_SLOTS,
        SPLITS=splits,
        BLOCK=geometry.block_size,
        FINE_ROWS=geometry.fine_rows,
        OVERLAP=geometry.overlap,
        K_SEL=geometry.selected_blocks,
        TILE=tile,
        HEADS=heads,
        GROUP=query_heads // kv_heads,
        D=head_dim,
        **dependent_launch(queries.device),
        num_warps=4 if tile * heads <= 64 else 8,
        num_stages=3 if splits == 1 and queries.element_size() == 2 else 2,
    )
    return lse


@triton.jit(do_not_specialize=["requests", "tokens"])
def _coarse_lse_kernel(
    queries,
    compressed,
    p_lse,
    batch,
    requests,
    tokens,
    scale,
    COARSE_STRIDE: tl.constexpr,
    COARSE_ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    FINE_ROWS: tl.constexpr,
    OVERLAP: tl.constexpr,
    K_SEL: tl.constexpr,
    TILE: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_predecessor(DEPENDENT)
    i_kv_head, i_split = tl.program_id(1), tl.program_id(2)
    i_request, i_row, count, position = locate_tile(tl.program_id(0), batch, requests, 0, tokens, TILE)
    last = position + count - 1
    if (count <= 0) | (last // BLOCK < K_SEL) | (last < tl.load(batch.sparse_from + i_request)):
        return

    o_m = tl.arange(0, TILE * HEADS)
    m_part = (o_m // HEADS < count) & (o_m % HEADS < GROUP)
    o_row = (i_split * tokens + i_row + o_m // HEADS).to(tl.int64)
    p_part = p_lse + o_row * tl.num_programs(1) * GROUP + i_kv_head * GROUP + o_m % HEADS
    end_tile = (last + 1) // COARSE_STRIDE
    share = tl.cdiv(tl.cdiv(end_tile, SLOTS), SPLITS) * SLOTS
    begin, end = i_split * share, tl.minimum((i_split + 1) * share, end_tile)
    if begin >= end:
        tl.store(p_part, float("-inf"), mask=m_part)
        return

    b_queries = load_queries(queries, i_row, count, i_kv_head, GROUP, TILE, HEADS, D)
    seen_by_all = (position + 1) // COARSE_STRIDE
    end_row = (position + o_m // HEADS + 1) // COARSE_STRIDE
    p_tokens = tokens_of(batch, i_request)
    p_compressed, strides = compressed
    p_head = p_compressed + i_kv_head * strides[1] + tl.arange(0, D)[None, :] * strides[3]

    b_max = tl.full([TILE * HEADS], float("-inf"), tl.float32)
    b_sum = tl.zeros([TILE * HEADS], tl.float32)
    o_place = tl.arange(0, SLOTS)
    o_coarse = (FINE_ROWS + o_place % COARSE_ROWS) * strides[2]  # begin and SLOTS are multiples of COARSE_ROWS
    p_pages = p_tokens + o_place // COARSE_ROWS * BLOCK
    b_next = tl.load(p_pages + begin // COARSE_ROWS * BLOCK, mask=begin + o_place < end_tile, other=0)
    for i_slot in range(begin, end, SLOTS):
        o_slot, i_next, b_page = i_slot + o_place, i_slot + SLOTS, b_next // BLOCK
        # A step ahead, so that the loads of keys need not wait for it.
        b_next = tl.load(p_pages + i_next // COARSE_ROWS * BLOCK, mask=i_next + o_place < end_tile, other=0)
        o_offset = b_page.to(tl.int64) * strides[0] + o_coarse
        b_logits = tl.dot(b_queries, tl.trans(tl.load(p_head + o_offset[:, None])), input_precision="ieee") * scale
        if (i_slot < OVERLAP) | (i_slot + SLOTS > seen_by_all):  # most steps need no mask
            m_visible = (o_slot >= OVERLAP)[None, :] & (o_slot[None, :] < end_row[:, None])
            b_logits = tl.where(m_visible, b_logits, float("-inf"))
        b_new_max = tl.maximum(b_max, tl.max(b_logits, 1))
        b_base = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)
        b_sum = b_sum * tl.exp2(b_max - b_base) + tl.sum(tl.exp2(b_logits - b_base[:, None]), 1)
        b_max = b_new_max

    tl.store(p_part, b_max + tl.log2(b_sum), mask=m_part)


@triton.jit
def whole_lse(
    p_lse,
    o_m,
    i_row,
    count,
    i_kv_head,
    tokens,
    SPLITS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Log-sum-exp over all parts, [rows] float32; +inf, which makes every weight 0, for padding or without a slot."""
    o_head = o_m % HEADS
    m_row = (o_m // HEADS < count) & (o_head < GROUP)
    o_split = tl.arange(0, SPLITS)
    query_heads = tl.num_programs(1) * GROUP
    o_row = (o_split[None, :] * tokens + (i_row + o_m // HEADS)[:, None]).to(tl.int64)
    o_lse = o_row * query_heads + (i_kv_head * GROUP + o_head)[:, None]
    b_parts = tl.load(p_lse + o_lse, mask=m_row[:, None], other=float("-inf"))
    b_max = tl.max(b_parts, 1)
    m_row = m_row & (b_max > float("-inf"))
    b_base = tl.where(m_row, b_max, 0.0)
    b_lse = b_base + tl.log2(tl.sum(tl.exp2(b_parts - b_base[:, None]), 1))
    return tl.where(m_row, b_lse, float("inf"))
