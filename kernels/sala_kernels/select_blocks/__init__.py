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
    """Select blocks per query and KV head: the lists that sparse_attention reads.

    Per query t: ``LSE_h`` over visible K2 slots; ``P_c = Σ_h exp(scale·q_h·K1_c − LSE_h)`` over the heads of
    the group, rounded to the dtype of the queries; a block's score is the largest P of the windows that touch
    it; initial, local and current blocks come first; ties go to the lowest block.

    queries: [T, Hq, D], a floating dtype; heads of one group are adjacent.
    compressed: [P, Hkv, page_rows, D], same dtype, as compress_keys leaves it.
    scale: factor of the logits, ``D^−½`` in the released model.

    Returns [T, Hkv, K_SEL] int32: block ids in ascending order, −1 after the last one. Rows before their
    request's ``sparse_from`` are −1 throughout.
    Raises ValueError on a shape that does not fit, TypeError on a dtype that does not fit.
    Source: InfLLM-V2 (arXiv 2509.24663), section 3. Where it differs from the kernels of the released model
    (infllmv2_cuda_impl), as in the windows that touch a block and the number of local ones, these decide.

    Block 2 of the first request has the only key that is not 0. It is the free pick beside block 0 and the current one,
    and the prompt of two tokens has one block:

    >>> compressed = torch.zeros(9, 1, geometry.page_rows, 1)
    >>> compressed[batch.pages(0, geometry.block_size)[2], 0, 1] = 1.0
    >>> select_blocks(torch.ones(3, 1, 1), compressed, batch, geometry, scale=1.0)[:, 0]
    tensor([[ 0,  2,  3],
            [ 0, -1, -1],
            [ 0, -1, -1]], dtype=torch.int32)
    """
    sizes = check_shapes({"R": geometry.page_rows}, queries=(queries, "T Hq D"), compressed=(compressed, "_ Hkv R D"))
    check_groups(sizes["Hq"], sizes["Hkv"])
    check_dtypes(queries.dtype, compressed=compressed)
    module = implementation_of(__name__, implementation, queries)
    return module.select_blocks(Arguments(queries, compressed, batch, geometry, scale))
