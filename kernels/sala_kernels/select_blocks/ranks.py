"""Exact top-k of a row's block scores, which it holds in registers: bisection over the bits of the threshold."""

import torch
import triton
import triton.language as tl

from sala_kernels.early_launch import early_launch, meet_predecessor
from sala_kernels.layout import PagedBatch, SparseGeometry
from sala_kernels.row_tiles import batch_arguments, locate_tile

SHORT_BLOCKS = 2048  # rows with fewer candidates are ranked in fewer registers


def take_best(
    scores: torch.Tensor, selected: torch.Tensor, batch: PagedBatch, geometry: SparseGeometry, first_row: int
) -> None:
    """Fill rows first_row … of ``selected`` from their ``scores`` [2, rows, Hkv, NB], which are not negative."""
    _, rows, kv_heads, blocks = scores.shape
    # Numbers that are not negative order as their bits do.
    bits = scores.view({2: torch.int16, 4: torch.int32}[scores.element_size()])
    capacity = triton.next_power_of_2(max(blocks, 16))
    _rank_kernel[(rows, kv_heads)](
        bits,
        selected,
        *batch_arguments(batch),
        first_row,
        rows,
        *bits.stride(),
        *selected.stride(),
        BLOCK=geometry.block_size,
        INIT_BLOCKS=geometry.init_blocks,
        LOCAL_BLOCKS=geometry.local_blocks,
        K_SEL=geometry.selected_blocks,
        K_SEL_PADDED=triton.next_power_of_2(geometry.selected_blocks),
        BITS=8 * scores.element_size() - 1,
        CAPACITY=capacity,
        SHORT=min(SHORT_BLOCKS, capacity),
        **early_launch(scores.device),
        num_warps=min(max(capacity // 1024, 1), 16),
    )


@triton.jit(do_not_specialize=["requests", "first_row", "rows"])
def _rank_kernel(
    p_bits,
    p_selected,
    p_query_start,
    p_kv_lens,
    p_sparse_from,
    p_request_rows,
    p_token_slots,
    token_slots_stride,
    requests,
    first_row,
    rows,
    kind_stride,
    row_stride,
    head_stride,
    block_stride,
    selected_row_stride,
    selected_head_stride,
    selected_stride,
    BLOCK: tl.constexpr,
    INIT_BLOCKS: tl.constexpr,
    LOCAL_BLOCKS: tl.constexpr,
    K_SEL: tl.constexpr,
    K_SEL_PADDED: tl.constexpr,
    BITS: tl.constexpr,
    CAPACITY: tl.constexpr,
    SHORT: tl.constexpr,
    EARLY: tl.constexpr,
):
    meet_predecessor(EARLY)
    i_kv_head = tl.program_id(1)
    i_request, i_row, count, position = locate_tile(
        tl.program_id(0), p_query_start, p_kv_lens, requests, first_row, rows, 1
    )
    if count <= 0:
        return
    p_output = p_selected + i_row.to(tl.int64) * selected_row_stride + i_kv_head * selected_head_stride
    o_rank = tl.arange(0, K_SEL_PADDED)
    current = position // BLOCK
    sparse = position >= tl.load(p_sparse_from + i_request)
    if (current < K_SEL) | (sparse == 0):
        b_all = tl.where(sparse & (o_rank <= current), o_rank, -1)
        tl.store(p_output + o_rank * selected_stride, b_all, mask=o_rank < K_SEL)
        return

    # Initial blocks, the best FREE blocks of [INIT_BLOCKS, end), then the local blocks, which begin at end.
    FREE: tl.constexpr = K_SEL - INIT_BLOCKS - LOCAL_BLOCKS - 1
    end = current - LOCAL_BLOCKS
    b_forced = tl.where(o_rank < INIT_BLOCKS, o_rank, end + o_rank - INIT_BLOCKS - FREE)
    m_forced = (o_rank < K_SEL) & ((o_rank < INIT_BLOCKS) | (o_rank >= INIT_BLOCKS + FREE))
    tl.store(p_output + o_rank * selected_stride, b_forced, mask=m_forced)

    p_row = p_bits + (i_row - first_row).to(tl.int64) * row_stride + i_kv_head * head_stride
    p_free = p_output + INIT_BLOCKS * selected_stride
    if end <= SHORT:
        _take(p_row, kind_stride, block_stride, p_free, selected_stride, end, INIT_BLOCKS, FREE, BITS, SHORT)
    else:
        _take(p_row, kind_stride, block_stride, p_free, selected_stride, end, INIT_BLOCKS, FREE, BITS, CAPACITY)


@triton.jit
def _take(
    p_row,
    kind_stride,
    block_stride,
    p_free,
    selected_stride,
    end,
    FIRST: tl.constexpr,
    FREE: tl.constexpr,
    BITS: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    """Write the FREE best of the blocks [FIRST, end), at most CAPACITY of them, in ascending order."""
    o_block = tl.arange(0, CAPACITY)  # from 0 on, so that loads are aligned
    m_block = (o_block >= FIRST) & (o_block < end)
    p_block = p_row + o_block * block_stride
    b_own = tl.load(p_block, mask=m_block, other=-1).to(tl.int32)
    b_next = tl.load(p_block + kind_stride, mask=m_block, other=-1).to(tl.int32)
    b_bits = tl.maximum(b_own, b_next)
    # The largest threshold that FREE scores reach, bit by bit.
    threshold = 0
    for i_bit in range(0, BITS):
        raised = threshold + (1 << (BITS - 1 - i_bit))
        threshold = tl.where(tl.sum((b_bits >= raised).to(tl.int32), 0) >= FREE, raised, threshold)
    m_above, m_tie = b_bits > threshold, b_bits == threshold
    ties = FREE - tl.sum(m_above.to(tl.int32), 0)
    # One scan counts both: scores above the threshold, fewer than FREE, in front of TIE_BITS bits for equal ones.
    TIE_BITS: tl.constexpr = 20
    b_count = tl.cumsum(tl.where(m_above, 1 << TIE_BITS, 0) + m_tie.to(tl.int32), 0)
    o_above, o_tie = b_count >> TIE_BITS, b_count & ((1 << TIE_BITS) - 1)
    m_take = m_above | (m_tie & (o_tie <= ties))
    tl.store(p_free + (o_above + tl.minimum(o_tie, ties) - 1) * selected_stride, o_block, mask=m_take)
