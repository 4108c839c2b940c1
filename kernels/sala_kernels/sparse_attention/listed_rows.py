"""Rows that choose blocks, in Triton: a tile takes in the blocks that several of its rows list, each row the rest."""

import torch

from sala_kernels.sparse_attention import Arguments
from sala_kernels.sparse_attention.row_kernel import attend_rows
from sala_kernels.sparse_attention.shared_lists import shared_lists
from sala_kernels.sparse_attention.tile_kernel import attend_tiles, tile_queries


def attend_listed_rows(arguments: Arguments, output: torch.Tensor) -> None:
    """Fill ``output`` [T, Hq, D] of the rows that do not attend to every block up to their own."""
    queries = arguments.queries
    lists = shared_lists(arguments.block_ids, arguments.batch, arguments.geometry, tile_queries(arguments.group))
    parts = queries.new_empty((1, *queries.shape), dtype=torch.float32)
    lse = parts.new_empty(parts.shape[:3])
    attend_tiles(arguments, parts[0], lists, lse[0])
    attend_rows(arguments, lists.rest, parts, lse, output)
