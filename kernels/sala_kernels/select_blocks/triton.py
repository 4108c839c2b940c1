"""select_blocks on a GPU: scores of the free blocks, then the exact top-k by bisection over the scores' bits.

Rows that take every block up to their own need no scores. Scores of a slice of rows at a time bound the
scratch memory.
"""

import torch
import triton
import triton.language as tl

from sala_kernels.layout import PagedBatch, SparseGeometry
from sala_kernels.row_tiles import batch_arguments, locate_tile
from sala_kernels.select_blocks.scores import coarse_lse, score_blocks

SCORE_BYTES = 2**27  # of the score scratch, unless a single row needs more
RANK_BLOCKS = 1024  # scores in registers at a time


def select_blocks(
    queries: torch.Tensor,
    compressed: torch.Tensor,
    batch: PagedBatch,
    geometry: SparseGeometry,
    scale: float,
) -> torch.Tensor:
    tokens, kv_heads = queries.shape[0], compressed.shape[1]
    selected = queries.new_empty((tokens, kv_heads, geometry.selected_blocks), dtype=torch.int32)
    blocks = triton.cdiv(batch.max_kv_tokens, geometry.block_size)
    if blocks <= geometry.selected_blocks:
        scores = queries.new_empty((tokens, kv_heads, 0))
        _take_best(scores, selected, batch, geometry, 0)
        return selected

    blocks = triton.cdiv(blocks, 16) * 16  # Triton compiles anew for strides that 16 does not divide
    lse = coarse_lse(queries, compressed, batch, geometry, scale)
    row_bytes = kv_heads * blocks * queries.element_size()
    rows = max(1, SCORE_BYTES // row_bytes)
    scores = queries.new_empty((min(rows, tokens), kv_heads, blocks))
    for first_row in range(0, tokens, rows):
        part = scores[: tokens - first_row]
        score_blocks(queries, compressed, lse, part, batch, geometry, scale, first_row)
        _take_best(part, selected, batch, geometry, first_row)
    return selected


def _take_best(
    scores: torch.Tensor, selected: torch.Tensor, batch: PagedBatch, geometry: SparseGeometry, first_row: int
) -> None:
    """Fill rows first_row … of ``selected`` from their ``scores`` [rows, Hkv, NB], which are not negative."""
    rows, kv_heads, _ = scores.shape
    # Numbers that are not negative order as their bits do.
    bits = scores.view({2: torch.int16, 4: torch.int32}[scores.element_size()])
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
        CHUNK=RANK_BLOCKS,
        num_warps=4,
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
    CHUNK: tl.constexpr,
):
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
    o_chunk = tl.arange(0, CHUNK)
    # The largest threshold that FREE scores reach, bit by bit.
    threshold = 0
    for i_bit in range(0, BITS):
        raised = threshold + (1 << (BITS - 1 - i_bit))
        b_reached = tl.zeros([CHUNK], tl.int32)
        for i_block in range(INIT_BLOCKS, end, CHUNK):
            o_block = i_block + o_chunk
            b_bits = tl.load(p_row + o_block * block_stride, mask=o_block < end, other=-1).to(tl.int32)
            b_reached += (b_bits >= raised).to(tl.int32)
        threshold = tl.where(tl.sum(b_reached, 0) >= FREE, raised, threshold)
    b_above = tl.zeros([CHUNK], tl.int32)
    for i_block in range(INIT_BLOCKS, end, CHUNK):
        o_block = i_block + o_chunk
        b_bits = tl.load(p_row + o_block * block_stride, mask=o_block < end, other=-1).to(tl.int32)
        b_above += (b_bits > threshold).to(tl.int32)
    ties = FREE - tl.sum(b_above, 0)

    # Ascending ids: everything above the threshold and the first of the blocks that equal it.
    p_free = p_output + INIT_BLOCKS * selected_stride
    taken = 0
    tied = 0
    for i_block in range(INIT_BLOCKS, end, CHUNK):
        o_block = i_block + o_chunk
        b_bits = tl.load(p_row + o_block * block_stride, mask=o_block < end, other=-1).to(tl.int32)
        b_tie = (b_bits == threshold).to(tl.int32)
        m_take = (b_bits > threshold) | ((b_tie != 0) & (tied + tl.cumsum(b_tie, 0) <= ties))
        b_take = m_take.to(tl.int32)
        b_slot = taken + tl.cumsum(b_take, 0) - 1
        tl.store(p_free + b_slot * selected_stride, o_block, mask=m_take)
        taken += tl.sum(b_take, 0)
        tied += tl.sum(b_tie, 0)
