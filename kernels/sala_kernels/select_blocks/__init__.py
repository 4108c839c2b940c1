"""Choice of the blocks that a query attends to (InfLLM-V2, arXiv 2509.24663, section 3)."""

from typing import NamedTuple

import torch

from sala_kernels.contract import check_dtypes, check_groups, check_shapes, implementation_of
from sala_kernels.layout import PagedBatch, SparseGeometry


class Arguments(NamedTuple):
    """What ``select_blocks`` takes, checked, as its implementations take it."""

    queries: torch.Tensor
    compressed: torch.Tensor
    batch: PagedBatch
    geometry: SparseGeometry
    scale: float


def select_blocks(
    queries: torch.Tensor,
    compressed: torch.Tensor,
    batch: PagedBatch,
    geometry: SparseGeometry,
    scale: float,
    *,
    implementation: str | None = None,
) -> torch.Tensor:
    """Select blocks per query and KV head.

    queries: [T, Hq, D]; heads of one group are adjacent. compressed: [pages, Hkv, page_rows, D].
    Returns [T, Hkv, K_SEL] int32: block ids in ascending order, −1 after the last one. Rows before their
    request's ``sparse_from`` are −1 throughout.

    Per query t: ``LSE_h`` over visible K2 slots; ``P_c = Σ_h exp(scale·q_h·K1_c − LSE_h)`` over the heads of
    the group, rounded to the dtype of the queries; a block's score is the largest P of the windows that touch
    it; initial, local and current blocks come first; ties go to the lowest block. Raises ValueError or
    TypeError on a shape or dtype that does not fit.
    """
    sizes = check_shapes({"R": geometry.page_rows}, queries=(queries, "T Hq D"), compressed=(compressed, "_ Hkv R D"))
    check_groups(sizes["Hq"], sizes["Hkv"])
    check_dtypes(queries.dtype, compressed=compressed)
    module = implementation_of(__name__, implementation, queries)
    return module.select_blocks(Arguments(queries, compressed, batch, geometry, scale))
