"""sparse_attention on Hopper, for what ``is_compiled_for`` names.

As in Triton, except that in prefill steps that fill the GPU the rows that choose blocks attend with shared_blocks.cu.
"""

import torch

from sala_kernels.sparse_attention import Arguments
from sala_kernels.sparse_attention.listed_rows import attend_listed_rows
from sala_kernels.sparse_attention.row_kernel import attend_decode
from sala_kernels.sparse_attention.shared_blocks import attend_shared_blocks, compile_shared_blocks, fills_gpu
from sala_kernels.sparse_attention.tile_kernel import attend_tiles


def sparse_attention(arguments: Arguments) -> torch.Tensor:
    queries = arguments.queries
    if arguments.batch.max_query_tokens == 1:
        return attend_decode(arguments)
    compile_shared_blocks(arguments.group, queries.device)  # so that no long step waits for it later
    output = queries.new_empty(queries.shape)
    attend_tiles(arguments, output)
    attend_rows = attend_shared_blocks if fills_gpu(arguments) else attend_listed_rows
    attend_rows(arguments, output)
    return output
