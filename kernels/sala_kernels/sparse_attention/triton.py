"""sparse_attention on a GPU: online softmax over the listed blocks of a row, or over all blocks of a tile of rows.

Rows that attend to every block up to their own, because they are dense or the list names them all, share
keys and values in tiles. In a prefill step the other rows share those of the blocks that several rows of a tile list,
and a program for each row adds what is left of its list. A decode step has programs for rows alone.
"""

import torch

from sala_kernels.sparse_attention import Arguments
from sala_kernels.sparse_attention.listed_rows import attend_listed_rows
from sala_kernels.sparse_attention.row_kernel import attend_decode
from sala_kernels.sparse_attention.tile_kernel import attend_tiles


def sparse_attention(arguments: Arguments) -> torch.Tensor:
    if arguments.batch.max_query_tokens == 1:
        return attend_decode(arguments)
    output = arguments.queries.new_empty(arguments.queries.shape)
    attend_tiles(arguments, output)
    attend_listed_rows(arguments, output)
    return output
