"""Mean-pooled keys over sliding windows, the index of block selection (InfLLM-V2, arXiv 2509.24663, section 3)."""

import torch

from sala_kernels.contract import check_dtypes, check_shapes, implementation_of
from sala_kernels.layout import PagedBatch, SparseGeometry


def compress_keys(
    keys: torch.Tensor,
    compressed: torch.Tensor,
    batch: PagedBatch,
    geometry: SparseGeometry,
    *,
    implementation: str | None = None,
) -> None:
    """Write the compressed rows whose windows end with a token of this step.

    keys: [pool slots, Hkv, D]; the pool, already holding this step's keys.
    compressed: [pages, Hkv, page_rows, D], same dtype; written in place, only at completed rows.

    Means are accumulated in float32 or better and rounded once. Raises ValueError or TypeError on a
    shape or dtype that does not fit.
    """
    check_shapes({"R": geometry.page_rows}, keys=(keys, "_ Hkv D"), compressed=(compressed, "_ Hkv R D"))
    check_dtypes(keys.dtype, compressed=compressed)
    implementation_of(__name__, implementation, keys).compress_keys(keys, compressed, batch, geometry)
