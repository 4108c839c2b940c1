"""select_blocks on a GPU: scores of the free blocks, then the exact top-k.

Rows that take every block up to their own need no scores. Scores of a slice of rows at a time bound the
scratch memory.
"""

import torch
import triton

from sala_kernels.select_blocks import Arguments
from sala_kernels.select_blocks.lse import coarse_lse
from sala_kernels.select_blocks.scores import score_blocks
from sala_kernels.select_blocks.top_k import take_top_k

SCORE_BYTES = 2**28  # of the score scratch, unless a single row needs more
STRIDE_UNIT = 16  # Triton compiles anew for strides that 16 does not divide


def select_blocks(arguments: Arguments) -> torch.Tensor:
    queries, compressed, batch, geometry, _ = arguments
    tokens, kv_heads = queries.shape[0], compressed.shape[1]
    selected = queries.new_empty((tokens, kv_heads, geometry.selected_blocks), dtype=torch.int32)
    blocks = triton.cdiv(batch.max_kv_tokens, geometry.block_size)
    if blocks <= geometry.selected_blocks:
        unread = queries.new_empty((2, tokens, kv_heads, STRIDE_UNIT))
        take_top_k(unread, selected, selected, batch, geometry, 0)
        return selected

    blocks = triton.cdiv(blocks, STRIDE_UNIT) * STRIDE_UNIT
    lse = coarse_lse(arguments)
    row_bytes = 2 * kv_heads * blocks * queries.element_size()
    rows = min(max(1, SCORE_BYTES // row_bytes), tokens)
    scores = queries.new_empty((2, rows, kv_heads, blocks))
    ended = selected.new_empty((rows, kv_heads))
    for first_row in range(0, tokens, rows):
        part = scores[:, : tokens - first_row]
        score_blocks(arguments, lse, part, ended, first_row)
        take_top_k(part, selected, ended, batch, geometry, first_row)
    return selected
