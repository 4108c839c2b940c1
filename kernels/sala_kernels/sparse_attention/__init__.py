"""Causal softmax attention over chosen blocks (InfLLM-V2, arXiv 2509.24663, section 3)."""

import torch

from sala_kernels.contract import check_dtypes, check_groups, check_shapes, implementation_of
from sala_kernels.layout import PagedBatch, SparseGeometry


def sparse_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_ids: torch.Tensor,
    batch: PagedBatch,
    geometry: SparseGeometry,
    scale: float,
    *,
    implementation: str | None = None,
) -> torch.Tensor:
    """Attend to the tokens of the selected blocks that are not after the query.

    queries: [T, Hq, D]; heads of one group are adjacent. keys, values: [pool slots, Hkv, D].
    block_ids: [T, Hkv, K_SEL] int32 as select_blocks returns it; read only for rows from their request's
    ``sparse_from`` on, which hold at least the current block. Rows before it attend to all blocks. Returns
    [T, Hq, D] in the dtype of the queries; softmax and sums are float32 or better. Raises ValueError or
    TypeError on a shape or dtype that does not fit.
    """
    sizes = check_shapes(
        {"K_SEL": geometry.selected_blocks},
        queries=(queries, "T Hq D"),
        keys=(keys, "S Hkv D"),
        values=(values, "S Hkv D"),
        block_ids=(block_ids, "T Hkv K_SEL"),
    )
    check_groups(sizes["Hq"], sizes["Hkv"])
    check_dtypes(queries.dtype, keys=keys, values=values)
    check_dtypes(torch.int32, block_ids=block_ids)
    module = implementation_of(__name__, implementation, queries)
    return module.sparse_attention(queries, keys, values, block_ids, batch, geometry, scale)
