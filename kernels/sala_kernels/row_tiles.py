"""Cutting a step into tiles of rows for Triton kernels.

A tile is some consecutive query rows of one request times the query heads of one KV head. Launch grids follow
from tensor shapes alone; which request a tile belongs to, and whether it has rows, the program finds on the
device.
"""

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634  # kernels compute powers of two
MIN_DOT_ROWS = 16  # smallest operand of tl.dot
SEARCH_WIDTH = tl.constexpr(128)
FEW_ROWS = 8  # steps of more rows fill a GPU with fewer programs per row


def tile_shape(queries: torch.Tensor, kv_heads: int, max_query_tokens: int) -> tuple[int, int]:
    """Queries per tile and padded heads per group, both powers of two; their product is at least MIN_DOT_ROWS.

    A decode step has one row per request, so its tiles hold one query.

    queries: [T, Hq, D], a floating dtype.
    kv_heads: Hkv.
    max_query_tokens: that of the PagedBatch, 1 for a decode step.

    >>> queries = torch.empty(1000, 32, 128, dtype=torch.bfloat16)
    >>> tile_shape(queries, kv_heads=2, max_query_tokens=1000), tile_shape(queries, kv_heads=2, max_query_tokens=1)
    ((8, 16), (1, 16))
    """
    _, query_heads, head_dim = queries.shape
    heads = triton.next_power_of_2(query_heads // kv_heads)
    if max_query_tokens == 1:
        return 1, max(heads, MIN_DOT_ROWS)
    row_bytes = head_dim * queries.element_size()
    rows = max(MIN_DOT_ROWS, min(128, 2**15 // row_bytes))  # 32 KiB of queries stay within shared memory
    return max(1, rows // heads), heads


def decode_splits(rows: int, few: int, many: int) -> int:
    """Programs that share the context of a row in a decode step: ``few`` up to FEW_ROWS ``rows``, ``many`` beyond.

    >>> FEW_ROWS, decode_splits(8, few=32, many=8), decode_splits(9, few=32, many=8)
    (8, 32, 8)
    """
    return few if rows <= FEW_ROWS else many


def tile_count(rows: int, requests: int, tile_queries: int) -> int:
    """Launch size that holds every tile of ``rows`` rows, however they divide over the ``requests``.

    There are ``rows // tile_queries`` full tiles at most, and a partial one for every request:

    >>> tile_count(10, requests=3, tile_queries=4)
    5
    """
    return rows if tile_queries == 1 else rows // tile_queries + requests


@triton.jit
def locate_tile(i_tile, batch, requests, first_row, rows, TILE: tl.constexpr):
    """Request, first row, number of rows (none if not positive) and position of the first row of a tile.

    The tiles cover rows first_row … first_row + rows − 1 of the step. Those of request b begin at tile
    ``start_b // TILE + b``, which leaves room for the partial last tile of every request before it.
    """
    i_request = find_request(i_tile, batch.query_start, requests, first_row, rows, TILE)
    # Tiles beyond the last request count as empty tiles of it.
    i_request = tl.minimum(i_request, requests - 1)
    start = _within(tl.load(batch.query_start + i_request) - first_row, rows)
    query_end = tl.load(batch.query_start + i_request + 1)
    i_row = first_row + start + (i_tile - first_tile(i_request, start, TILE)) * TILE
    count = tl.minimum(first_row + _within(query_end - first_row, rows) - i_row, TILE)
    position = tl.load(batch.kv_lens + i_request) - query_end + i_row
    return i_request, i_row, count, position


@triton.jit
def find_request(i_tile, p_query_start, requests, first_row, rows, TILE: tl.constexpr):
    """Request of a tile; ``requests`` for tiles beyond the last one. Tiles lie as in locate_tile."""
    i_request = 0
    for i_first in range(0, requests, SEARCH_WIDTH):
        o_request = i_first + tl.arange(0, SEARCH_WIDTH)
        m_request = o_request < requests
        b_end = tl.load(p_query_start + 1 + o_request, mask=m_request, other=0)
        b_next = first_tile(o_request + 1, _within(b_end - first_row, rows), TILE)
        i_request += tl.sum((m_request & (b_next <= i_tile)).to(tl.int32), 0)
    return i_request


@triton.jit
def _within(row, rows):
    return tl.minimum(tl.maximum(row, 0), rows)


@triton.jit
def first_tile(i_request, start, TILE: tl.constexpr):
    """First tile of a request whose first row is ``start``."""
    return start if TILE == 1 else start // TILE + i_request


@triton.jit
def load_queries(
    queries,
    i_row,
    count,
    i_kv_head,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
):
    """Queries of a tile, [TILE·HEADS, D], of ``queries`` with strides; padding repeats the last real rows and heads."""
    p_queries, strides = queries
    o_m = tl.arange(0, TILE * HEADS)
    o_row = i_row + tl.minimum(o_m // HEADS, count - 1)
    o_head = i_kv_head * GROUP + tl.minimum(o_m % HEADS, GROUP - 1)
    p_row = p_queries + o_row.to(tl.int64)[:, None] * strides[0] + o_head[:, None] * strides[1]
    return tl.load(p_row + tl.arange(0, D)[None, :] * strides[2])
