"""Scores of blocks: every K1 slot of a row is scored once, in one long loop.

The last windows of a block reach into the next one and touch both. Instead of scoring those twice, a block's scratch
holds two numbers: the best weight of its own slots, and of the slots of the next block that touch it too. Top-k joins
them while it loads them.
"""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.kernel_arguments import batch_pointers, tokens_of, with_strides
from sala_kernels.layout import SparseGeometry
from sala_kernels.row_tiles import LOG2_E, load_queries, locate_tile, tile_count, tile_shape
from sala_kernels.select_blocks import Arguments
from sala_kernels.select_blocks.lse import whole_lse

TILE_SLOTS = 64  # K1 slots per step of the loop
PROGRAMS = 4096  # aimed at by splitting the context
SPLITS = 256  # at most; each begins with the log-sum-exp of its rows


def score_blocks(
    arguments: Arguments, lse: torch.Tensor, scores: torch.Tensor, ended: torch.Tensor, first_row: int
) -> None:
    """Fill ``scores`` [2, rows, Hkv, NB]: the best weights of a block's slots, and of the next OVERLAP ones.

    ``ended`` [rows, Hkv] int32 gets a zero for the first row of every tile that has scores.
    """
    queries, compressed, batch, geometry, scale = arguments
    _, query_heads, head_dim = queries.shape
    _, rows, kv_heads, blocks = scores.shape
    tile, heads = tile_shape(queries, kv_heads, batch.max_query_tokens)
    tiles, slots = tile_count(rows, batch.size, tile), max(TILE_SLOTS, geometry.fine_rows)
    splits = max(1, min(SPLITS, PROGRAMS // (tiles * kv_heads), triton.cdiv(blocks * geometry.fine_rows, slots)))
    _score_kernel[(tiles, kv_heads, splits)](
        with_strides(queries),
        with_strides(compressed),
        lse,
        with_strides(scores),
        ended,
        batch_pointers(batch),
        batch.size,
        first_row,
        rows,
        lse.shape[1],
        scale * LOG2_E,
        STRIDE=geometry.kernel_stride,
        BLOCKS=slots // geometry.fine_rows,
        LSE_SPLITS=lse.shape[0],
        ALL_VISIBLE=_all_visible(geometry, tile),
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
        **dependent_launch(queries.device),
        num_warps=4 if tile * heads <= 64 else 8,
        num_stages=2 if queries.element_size() == 2 else 1,
    )


def _all_visible(geometry: SparseGeometry, tile: int) -> bool:
    """Whether all windows of free blocks, and those that reach out of them, exist and end before a tile's first row."""
    far = geometry.local_blocks * geometry.block_size >= geometry.block_size + tile - 2
    return far and geometry.init_blocks * geometry.fine_rows >= geometry.overlap


@triton.jit(do_not_specialize=["requests", "first_row", "rows", "tokens"])
def _score_kernel(
    queries,
    compressed,
    p_lse,
    scores,
    p_ended,
    batch,
    requests,
    first_row,
    rows,
    tokens,
    scale,
    STRIDE: tl.constexpr,
    BLOCKS: tl.constexpr,
    LSE_SPLITS: tl.constexpr,
    ALL_VISIBLE: tl.constexpr,
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
    DEPENDENT: tl.constexpr,
):
    wait_for_predecessor(DEPENDENT)
    i_kv_head, i_split = tl.program_id(1), tl.program_id(2)
    i_request, i_row, count, position = locate_tile(tl.program_id(0), batch, requests, first_row, rows, TILE)
    last = position + count - 1
    if (count <= 0) | (last // BLOCK < K_SEL) | (last < tl.load(batch.sparse_from + i_request)):
        return

    if i_split == 0:
        tl.store(p_ended + (i_row - first_row) * tl.num_programs(1) + i_kv_head, 0)
    # One block past the last free one: its first slots touch that one too.
    end_block = last // BLOCK - LOCAL_BLOCKS + 1
    share = tl.cdiv(tl.cdiv(end_block - INIT_BLOCKS, BLOCKS), tl.num_programs(2)) * BLOCKS
    begin = INIT_BLOCKS + i_split * share
    end = tl.minimum(begin + share, end_block)
    if begin >= end:
        return

    b_queries = load_queries(queries, i_row, count, i_kv_head, GROUP, TILE, HEADS, D)
    b_queries = tl.trans(b_queries)  # keys are the rows of the products: the sum over heads then stays in a row
    o_m = tl.arange(0, TILE * HEADS)
    end_row = (position + o_m // HEADS + 1) // STRIDE
    b_lse = whole_lse(p_lse, o_m, i_row, count, i_kv_head, tokens, LSE_SPLITS, HEADS, GROUP)
    p_tokens = tokens_of(batch, i_request)
    p_compressed, key_strides = compressed
    p_head = p_compressed + i_kv_head * key_strides[1] + tl.arange(0, D)[None, :] * key_strides[3]
    o_query = tl.arange(0, TILE)
    p_scores, strides = scores
    p_row = p_scores + (i_row - first_row + o_query).to(tl.int64) * strides[1] + i_kv_head * strides[2]

    SLOTS: tl.constexpr = BLOCKS * FINE_ROWS
    o_place, o_fine = _places(SLOTS, FINE_ROWS)
    p_pages = p_tokens + o_place * BLOCK
    pages = last // BLOCK + 1
    b_next = tl.load(p_pages + begin * BLOCK, mask=begin + o_place < pages, other=0)
    for i_block in range(begin, end, BLOCKS):
        b_page, i_next = b_next // BLOCK, i_block + BLOCKS
        # A step ahead, so that the loads of keys need not wait for it.
        b_next = tl.load(p_pages + i_next * BLOCK, mask=(i_next < end) & (i_next + o_place < pages), other=0)
        o_offset = b_page.to(tl.int64) * key_strides[0] + o_fine * key_strides[2]
        b_keys = tl.load(p_head + o_offset[:, None])
        b_weights = tl.exp2(tl.dot(b_keys, b_queries, input_precision="ieee") * scale - b_lse[None, :])
        if not ALL_VISIBLE:
            o_slot = (i_block + o_place) * FINE_ROWS + o_fine
            m_visible = (o_slot >= OVERLAP)[:, None] & (o_slot[:, None] < end_row[None, :])
            b_weights = tl.where(m_visible, b_weights, 0.0)
        b_weights = tl.sum(tl.reshape(b_weights, [SLOTS, TILE, HEADS]), 2)
        b_all = _best(b_weights, SLOTS, FINE_ROWS, TILE)
        b_first = _best(tl.where((o_fine < OVERLAP)[:, None], b_weights, 0.0), SLOTS, FINE_ROWS, TILE)

        o_block = i_block + tl.arange(0, BLOCKS)
        p_score = p_row[None, :] + o_block[:, None] * strides[3]
        m_score = (o_block < end_block)[:, None] & (o_query[None, :] < count)
        tl.store(p_score, b_all.to(p_scores.dtype.element_ty), mask=m_score)
        p_before = p_score + strides[0] - strides[3]
        m_before = m_score & (o_block > INIT_BLOCKS)[:, None]
        tl.store(p_before, b_first.to(p_scores.dtype.element_ty), mask=m_before)


@triton.jit
def _places(SLOTS: tl.constexpr, FINE_ROWS: tl.constexpr):
    """Block and slot of the block, [SLOTS] each, for the rows of a tile of K1 slots.

    In a result of the tensor cores a thread holds rows that lie eight apart, so one half of a block's slots lies eight
    rows behind the other: less is left to exchange between threads for the best of them.
    """
    o_row = tl.arange(0, SLOTS)
    if (FINE_ROWS >= 2) & (FINE_ROWS <= 16):
        HALF: tl.constexpr = FINE_ROWS // 2
        return o_row // 16 * (16 // FINE_ROWS) + o_row % 8 // HALF, o_row // 8 % 2 * HALF + o_row % HALF
    else:
        return o_row // FINE_ROWS, o_row % FINE_ROWS


@triton.jit
def _best(b_weights, SLOTS: tl.constexpr, FINE_ROWS: tl.constexpr, TILE: tl.constexpr):
    """The largest weight of each block: [SLOTS, TILE] with rows as _places says -> [SLOTS / FINE_ROWS, TILE]."""
    if (FINE_ROWS >= 2) & (FINE_ROWS <= 16):
        HALF: tl.constexpr = FINE_ROWS // 2
        b_halves = tl.max(tl.reshape(b_weights, [SLOTS // 16, 2, 8 // HALF, HALF, TILE]), 1)
        return tl.reshape(tl.max(b_halves, 2), [SLOTS // FINE_ROWS, TILE])
    else:
        return tl.max(tl.reshape(b_weights, [SLOTS // FINE_ROWS, FINE_ROWS, TILE]), 1)
