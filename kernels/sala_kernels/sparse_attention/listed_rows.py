"""Rows that choose blocks, in Triton: a tile takes in the blocks that several of its rows list, each row the rest."""

import torch

from sala_kernels.layout import PagedBatch, SparseGeometry
from sala_kernels.sparse_attention.row_kernel import attend_rows
from sala_kernels.sparse_attention.shared_lists import shared_lists
from sala_kernels.sparse_attention.tile_kernel import attend_tiles, tile_queries


def attend_listed_rows(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_ids: torch.Tensor,
    output: torch.Tensor,
    batch: PagedBatch,
    geometry: SparseGeometry,
    scale: float,
) -> None:
    """Fill ``output`` [T, Hq, D] of the rows that do not attend to every block up to their own."""
    inputs, common = (queries, keys, values, block_ids), (batch, geometry, scale)
    lists = shared_lists(block_ids, batch, geometry, tile_queries(queries, keys))
    parts = queries.new_empty((1, *queries.shape), dtype=torch.float32)
    lse = parts.new_empty(parts.shape[:3])
    attend_tiles(*inputs, parts[0], *common, lists, lse[0])
    attend_rows(*inputs, lists.rest, parts, lse, output, *common)
