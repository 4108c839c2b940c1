"""Exact top-k of a row's block scores, which programs hold in registers: bisection over the bits of the threshold.

In a prefill step a program ranks a row. A decode step has few rows, so several programs rank a piece of the row each,
and the one that ends last ranks the best of all pieces.
"""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.kernel_arguments import batch_pointers, with_strides
from sala_kernels.layout import PagedBatch, SparseGeometry
from sala_kernels.row_tiles import locate_tile

SHORT_BLOCKS = 2048  # rows with fewer candidates are ranked in fewer registers
PIECE_BLOCKS, DECODE_WARPS = 1024, 4  # of a decode row: what a program ranks, and its size


def take_top_k(
    scores: torch.Tensor,
    selected: torch.Tensor,
    ended: torch.Tensor,
    batch: PagedBatch,
    geometry: SparseGeometry,
    first_row: int,
) -> None:
    """Fill rows first_row … of ``selected`` from their ``scores`` [2, rows, Hkv, NB], which are not negative.

    ended: [rows, Hkv] int32, zeros for rows that have scores.
    """
    _, rows, kv_heads, blocks = scores.shape
    # Numbers that are not negative order as their bits do.
    bits = scores.view({2: torch.int16, 4: torch.int32}[scores.element_size()])
    capacity = triton.next_power_of_2(max(blocks, 16))
    piece = min(capacity, PIECE_BLOCKS) if batch.max_query_tokens == 1 else capacity
    pieces = capacity // piece
    free = geometry.selected_blocks - geometry.init_blocks - geometry.local_blocks - 1
    listed = triton.next_power_of_2(max(free, 1))
    best = selected.new_empty((2, rows, kv_heads, pieces, listed) if pieces > 1 else 0)
    _top_k_kernel[(rows, kv_heads, pieces)](
        with_strides(bits),
        with_strides(selected),
        best,
        ended,
        batch_pointers(batch),
        batch.size,
        first_row,
        rows,
        BLOCK=geometry.block_size,
        INIT_BLOCKS=geometry.init_blocks,
        LOCAL_BLOCKS=geometry.local_blocks,
        K_SEL=geometry.selected_blocks,
        K_SEL_PADDED=triton.next_power_of_2(geometry.selected_blocks),
        BITS=8 * scores.element_size() - 1,
        PIECE=piece,
        PIECES=pieces,
        LISTED=listed,
        SHORT=min(SHORT_BLOCKS, piece),
        **dependent_launch(scores.device),
        num_warps=DECODE_WARPS if batch.max_query_tokens == 1 else min(max(piece // 1024, 1), 16),
    )


@triton.jit(do_not_specialize=["requests", "first_row", "rows"])
def _top_k_kernel(
    bits,
    selected,
    p_best,
    p_ended,
    batch,
    requests,
    first_row,
    rows,
    BLOCK: tl.constexpr,
    INIT_BLOCKS: tl.constexpr,
    LOCAL_BLOCKS: tl.constexpr,
    K_SEL: tl.constexpr,
    K_SEL_PADDED: tl.constexpr,
    BITS: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
    LISTED: tl.constexpr,
    SHORT: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_predecessor(DEPENDENT)
    i_kv_head, i_piece = tl.program_id(1), tl.program_id(2)
    i_request, i_row, count, position = locate_tile(tl.program_id(0), batch, requests, first_row, rows, 1)
    if count <= 0:
        return
    # Initial blocks, the best FREE blocks of [INIT_BLOCKS, end), then the local blocks, which begin at end.
    FREE: tl.constexpr = K_SEL - INIT_BLOCKS - LOCAL_BLOCKS - 1
    current = position // BLOCK
    end = current - LOCAL_BLOCKS
    p_selected, strides = selected
    p_output = p_selected + i_row.to(tl.int64) * strides[0] + i_kv_head * strides[1]
    o_rank = tl.arange(0, K_SEL_PADDED)
    sparse = position >= tl.load(batch.sparse_from + i_request)
    if (current < K_SEL) | (sparse == 0):
        if i_piece == 0:
            b_all = tl.where(sparse & (o_rank <= current), o_rank, -1)
            tl.store(p_output + o_rank * strides[2], b_all, mask=o_rank < K_SEL)
        return
    if i_piece * PIECE >= end:
        return
    if i_piece == 0:
        b_forced = tl.where(o_rank < INIT_BLOCKS, o_rank, end + o_rank - INIT_BLOCKS - FREE)
        m_forced = (o_rank < K_SEL) & ((o_rank < INIT_BLOCKS) | (o_rank >= INIT_BLOCKS + FREE))
        tl.store(p_output + o_rank * strides[2], b_forced, mask=m_forced)

    i_scores = i_row - first_row
    p_bits, bit_strides = bits
    row = p_bits + i_scores.to(tl.int64) * bit_strides[1] + i_kv_head * bit_strides[2], bit_strides
    free = p_output + INIT_BLOCKS * strides[2], strides
    if PIECES > 1:
        i_list = i_scores * tl.num_programs(1) + i_kv_head
        p_list = p_best + i_list.to(tl.int64) * PIECES * LISTED
        kind_best = rows.to(tl.int64) * tl.num_programs(1) * PIECES * LISTED
        _take_piece(
            row,
            free,
            p_list,
            kind_best,
            p_ended + i_list,
            i_piece,
            end,
            INIT_BLOCKS,
            FREE,
            BITS,
            PIECE,
            PIECES,
            LISTED,
        )
    elif end <= SHORT:
        _take(row, free, end, INIT_BLOCKS, FREE, BITS, SHORT)
    else:
        _take(row, free, end, INIT_BLOCKS, FREE, BITS, PIECE)


@triton.jit
def _take(
    row,
    free,
    end,
    FIRST: tl.constexpr,
    FREE: tl.constexpr,
    BITS: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    """Write to ``free`` the FREE best of the blocks [FIRST, end), at most CAPACITY of them, in ascending order.

    row, free: pointers to a row's bits and to its places for free blocks, with the strides of the tensors they are in.
    """
    o_block, b_bits = _load(row, 0, end, FIRST, CAPACITY)
    m_take, o_place = _top_k(b_bits, FREE, BITS)
    p_free, strides = free
    tl.store(p_free + o_place * strides[2], o_block, mask=m_take)


@triton.jit
def _take_piece(
    row,
    free,
    p_list,
    kind_best,
    p_ended,
    i_piece,
    end,
    FIRST: tl.constexpr,
    FREE: tl.constexpr,
    BITS: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
    LISTED: tl.constexpr,
):
    """As _take by several programs: each lists its piece's best, bits in front of blocks; the last one takes of those.

    p_list [2, …, PIECES, LISTED] int32, the kinds ``kind_best`` apart; ``p_ended`` counts programs that have listed.
    """
    o_block, b_bits = _load(row, i_piece * PIECE, end, FIRST, PIECE)
    m_take, o_place = _top_k(b_bits, FREE, BITS)
    p_free, strides = free
    if end <= PIECE:
        tl.store(p_free + o_place * strides[2], o_block, mask=m_take)
        return
    p_place = p_list + i_piece * LISTED + o_place
    tl.store(p_place, b_bits, mask=m_take)
    tl.store(p_place + kind_best, o_block, mask=m_take)
    tl.debug_barrier()  # one thread counts for all
    if tl.atomic_add(p_ended, 1, sem="acq_rel") == tl.cdiv(end, PIECE) - 1:
        o_listed = tl.arange(0, PIECES * LISTED)
        i_first = o_listed // LISTED * PIECE
        listed = tl.minimum(tl.minimum(i_first + PIECE, end) - tl.maximum(i_first, FIRST), FREE)
        m_listed = o_listed % LISTED < listed
        # Past the first-level cache, which other programs' stores do not reach.
        b_best = tl.load(p_list + o_listed, mask=m_listed, other=-1, cache_modifier=".cg")
        b_block = tl.load(p_list + kind_best + o_listed, mask=m_listed, other=0, cache_modifier=".cg")
        m_last, o_last = _top_k(b_best, FREE, BITS)
        tl.store(p_free + o_last * strides[2], b_block, mask=m_last)


@triton.jit
def _load(row, first, end, FIRST: tl.constexpr, CAPACITY: tl.constexpr):
    """Blocks first … first + CAPACITY − 1 and the bits of their scores, −1 outside of [FIRST, end)."""
    o_block = first + tl.arange(0, CAPACITY)  # not from FIRST on, so that loads are aligned
    m_block = (o_block >= FIRST) & (o_block < end)
    p_row, strides = row
    p_block = p_row + o_block * strides[3]
    b_own = tl.load(p_block, mask=m_block, other=-1).to(tl.int32)
    b_next = tl.load(p_block + strides[0], mask=m_block, other=-1).to(tl.int32)
    return o_block, tl.maximum(b_own, b_next)


@triton.jit
def _top_k(b_bits, FREE: tl.constexpr, BITS: tl.constexpr):
    """Which of ``b_bits`` are the FREE best that are not negative, ties to the first, and their places in order."""
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
    return m_above | (m_tie & (o_tie <= ties)), o_above + tl.minimum(o_tie, ties) - 1
