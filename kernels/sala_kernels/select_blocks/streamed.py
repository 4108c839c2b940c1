"""select_blocks on a GPU with every K1 slot scored once, in one long loop, and the top-k of a row in registers.

The last windows of a block reach into the next one and touch both. Instead of scoring those twice, a block's scratch
holds two numbers: the best weight of its own slots, and of those among them that also touch the block before. Top-k
joins them while it loads them, once.
"""

import torch
import triton
import triton.language as tl

from sala_kernels.layout import PagedBatch, SparseGeometry
from sala_kernels.row_tiles import LOG2_E, batch_arguments, load_queries, locate_tile, tile_count, tile_shape
from sala_kernels.select_blocks.scores import coarse_lse, whole_lse

SCORE_BYTES = 2**27  # of the score scratch, unless a single row needs more
TILE_SLOTS = 64  # K1 slots per step of the loop
PROGRAMS = 1024  # aimed at by splitting the context, a few per multiprocessor
SHORT_BLOCKS = 2048  # rows with fewer candidates are ranked in fewer registers


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
        _take_best(queries.new_empty((2, tokens, kv_heads, 0)), selected, batch, geometry, 0)
        return selected

    blocks = triton.cdiv(blocks, 16) * 16  # Triton compiles anew for strides that 16 does not divide
    lse = coarse_lse(queries, compressed, batch, geometry, scale)
    row_bytes = 2 * kv_heads * blocks * queries.element_size()
    rows = min(max(1, SCORE_BYTES // row_bytes), tokens)
    scores = queries.new_empty((2, rows, kv_heads, blocks))
    for first_row in range(0, tokens, rows):
        part = scores[:, : tokens - first_row]
        _score(queries, compressed, lse, part, batch, geometry, scale, first_row)
        _take_best(part, selected, batch, geometry, first_row)
    return selected


def _score(
    queries: torch.Tensor,
    compressed: torch.Tensor,
    lse: torch.Tensor,
    scores: torch.Tensor,
    batch: PagedBatch,
    geometry: SparseGeometry,
    scale: float,
    first_row: int,
) -> None:
    """Fill ``scores`` [2, rows, Hkv, NB]: best weights of all slots of a block, and of its first OVERLAP ones."""
    _, query_heads, head_dim = queries.shape
    _, rows, kv_heads, blocks = scores.shape
    tile, heads = tile_shape(queries, kv_heads, batch.max_query_tokens)
    tiles, slots = tile_count(rows, batch.size, tile), max(TILE_SLOTS, geometry.fine_rows)
    splits = max(1, min(PROGRAMS // (tiles * kv_heads), triton.cdiv(blocks * geometry.fine_rows, slots)))
    _score_kernel[(tiles, kv_heads, splits)](
        queries,
        compressed,
        lse,
        scores,
        *batch_arguments(batch),
        first_row,
        rows,
        lse.shape[1],
        scale * LOG2_E,
        *queries.stride(),
        *compressed.stride(),
        *scores.stride(),
        STRIDE=geometry.kernel_stride,
        BLOCKS=slots // geometry.fine_rows,
        LSE_SPLITS=lse.shape[0],
        INIT_BLOCKS=geometry.init_blocks,
        LOCAL_BLOCKS=geometry.local_blocks,
        BLOCK=geometry.block_size,
        FINE_ROWS=geometry.fine_rows,
        OVERLAP=geometry.overlap,
        K_SEL=geometry.selected_blocks,
        TILE=tile,
        HEADS=heads,
        GROUP=query_heads // kv_heads,
        D=head_dim,
        num_warps=4 if tile * heads <= 64 else 8,
        num_stages=3 if queries.element_size() == 2 else 1,
    )


def _take_best(
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
        num_warps=min(max(capacity // 1024, 4), 16),
    )


@triton.jit(do_not_specialize=["requests", "first_row", "rows", "tokens"])
def _score_kernel(
    p_queries,
    p_compressed,
    p_lse,
    p_scores,
    p_query_start,
    p_kv_lens,
    p_sparse_from,
    p_request_rows,
    p_token_slots,
    token_slots_stride,
    requests,
    first_row,
    rows,
    tokens,
    scale,
    token_stride,
    query_head_stride,
    query_dim_stride,
    page_stride,
    kv_head_stride,
    slot_stride,
    dim_stride,
    score_kind_stride,
    score_row_stride,
    score_head_stride,
    score_block_stride,
    STRIDE: tl.constexpr,
    BLOCKS: tl.constexpr,
    LSE_SPLITS: tl.constexpr,
    INIT_BLOCKS: tl.constexpr,
    LOCAL_BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    FINE_ROWS: tl.constexpr,
    OVERLAP: tl.constexpr,
    K_SEL: tl.constexpr,
    TILE: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
):
    i_kv_head, i_split = tl.program_id(1), tl.program_id(2)
    i_request, i_row, count, position = locate_tile(
        tl.program_id(0), p_query_start, p_kv_lens, requests, first_row, rows, TILE
    )
    last = position + count - 1
    if (count <= 0) | (last // BLOCK < K_SEL) | (last < tl.load(p_sparse_from + i_request)):
        return

    b_queries = load_queries(
        p_queries, i_row, count, i_kv_head, token_stride, query_head_stride, query_dim_stride, GROUP, TILE, HEADS, D
    )
    b_queries = tl.trans(b_queries)  # keys are the rows of the products: the sum over heads then stays in a row
    o_m = tl.arange(0, TILE * HEADS)
    end_row = (position + o_m // HEADS + 1) // STRIDE
    end_tile = (last + 1) // STRIDE
    b_lse = whole_lse(p_lse, o_m, i_row, count, i_kv_head, tokens, LSE_SPLITS, HEADS, GROUP)
    p_tokens = p_token_slots + tl.load(p_request_rows + i_request).to(tl.int64) * token_slots_stride
    p_head = p_compressed + i_kv_head * kv_head_stride + tl.arange(0, D)[None, :] * dim_stride
    o_query = tl.arange(0, TILE)
    p_row = p_scores + (i_row - first_row + o_query).to(tl.int64) * score_row_stride + i_kv_head * score_head_stride

    SLOTS: tl.constexpr = BLOCKS * FINE_ROWS
    # One block past the last free one: its first slots touch that one too.
    end_block = last // BLOCK - LOCAL_BLOCKS + 1
    share = tl.cdiv(tl.cdiv(end_block - INIT_BLOCKS, BLOCKS), tl.num_programs(2)) * BLOCKS
    begin = INIT_BLOCKS + i_split * share
    for i_block in range(begin, tl.minimum(begin + share, end_block), BLOCKS):
        o_slot = i_block * FINE_ROWS + tl.arange(0, SLOTS)
        m_slot = (o_slot >= OVERLAP) & (o_slot < end_tile)
        b_page = tl.load(p_tokens + o_slot // FINE_ROWS * BLOCK, mask=m_slot, other=0).to(tl.int64) // BLOCK
        o_offset = b_page * page_stride + o_slot % FINE_ROWS * slot_stride
        b_keys = tl.load(p_head + o_offset[:, None], mask=m_slot[:, None], other=0.0)
        b_weights = tl.exp2(tl.dot(b_keys, b_queries, input_precision="ieee") * scale - b_lse[None, :])
        m_visible = m_slot[:, None] & (o_slot[:, None] < end_row[None, :])
        b_weights = tl.where(m_visible, b_weights, 0.0)
        b_weights = tl.sum(tl.reshape(b_weights, [SLOTS, TILE, HEADS]), 2)
        b_all = tl.max(tl.reshape(b_weights, [BLOCKS, FINE_ROWS, TILE]), 1)
        m_first = tl.arange(0, SLOTS) % FINE_ROWS < OVERLAP
        b_first = tl.max(tl.reshape(tl.where(m_first[:, None], b_weights, 0.0), [BLOCKS, FINE_ROWS, TILE]), 1)

        o_block = i_block + tl.arange(0, BLOCKS)
        p_score = p_row[None, :] + o_block[:, None] * score_block_stride
        m_score = (o_block < end_block)[:, None] & (o_query[None, :] < count)
        tl.store(p_score, b_all.to(p_scores.dtype.element_ty), mask=m_score)
        tl.store(p_score + score_kind_stride, b_first.to(p_scores.dtype.element_ty), mask=m_score)


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
    p_free = p_output + INIT_BLOCKS * selected_stride
    if end - INIT_BLOCKS <= SHORT:
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
    o_block = FIRST + tl.arange(0, CAPACITY)
    m_block = o_block < end
    p_block = p_row + o_block * block_stride
    b_own = tl.load(p_block, mask=m_block, other=-1).to(tl.int32)
    b_next = tl.load(p_block + kind_stride + block_stride, mask=m_block, other=-1).to(tl.int32)
    b_bits = tl.maximum(b_own, b_next)
    # The largest threshold that FREE scores reach, bit by bit.
    threshold = 0
    for i_bit in range(0, BITS):
        raised = threshold + (1 << (BITS - 1 - i_bit))
        threshold = tl.where(tl.sum((b_bits >= raised).to(tl.int32), 0) >= FREE, raised, threshold)
    m_above, m_tie = b_bits > threshold, b_bits == threshold
    ties = FREE - tl.sum(m_above.to(tl.int32), 0)
    m_take = m_above | (m_tie & (tl.cumsum(m_tie.to(tl.int32), 0) <= ties))
    o_taken = tl.cumsum(m_take.to(tl.int32), 0) - 1
    tl.store(p_free + o_taken * selected_stride, o_block, mask=m_take)
