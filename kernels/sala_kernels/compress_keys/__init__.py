"""Mean-pooled keys over sliding windows, the index of block selection (InfLLM-V2, arXiv 2509.24663, section 3)."""

import torch

from sala_kernels.contract import check_dtypes, check_shapes, implementation_of
from sala_kernels.kv_scales import check_pools
from sala_kernels.layout import PagedBatch, SparseGeometry


def compress_keys(
    keys: torch.Tensor,
    compressed: torch.Tensor,
    batch: PagedBatch,
    geometry: SparseGeometry,
    *,
    kv_scales: torch.Tensor | None = None,
    implementation: str | None = None,
) -> None:
    """Write the compressed rows whose windows end with a token of this step.

    ``K1_c = mean(keys[e−kernel_size : e])`` with ``e = kernel_stride·(c+1)`` for slot c, over the request's tokens; K2
    likewise with four times the size and stride. Only windows that begin at token 0 or later count.

    keys: [S, Hkv, D], a floating dtype; the pool, already holding this step's keys.
    compressed: [P, Hkv, page_rows, D], same dtype, or a floating one beside keys in e4m3; written in place, only at
        completed rows. K1 slot c is row ``c % fine_rows`` of the page of its window's last token, K2 slots come behind
        those of K1.
    kv_scales: [2, Hkv] float32 where keys are in e4m3, as in sala_kernels.kv_scales; the means are those of what the
        keys stand for.

    Means are accumulated in float32 or better and rounded once.
    Raises ValueError on a shape that does not fit, TypeError on a dtype that does not fit.
    Source: InfLLM-V2 (arXiv 2509.24663), section 3, and the compression of the released modelling code.

    Every key is the number of its pool slot. The first request completes the windows of slots 18 to 19 and 12 to 19 in
    page 4, the second that of slots 20 to 21 in page 5:

    >>> keys, compressed = torch.arange(36.0).view(36, 1, 1), torch.zeros(9, 1, geometry.page_rows, 1)
    >>> compress_keys(keys, compressed, batch, geometry)
    >>> compressed[4:6, 0, :, 0]
    tensor([[ 0.0000,  0.0000,  0.0000, 18.5000, 15.5000],
            [ 0.0000, 20.5000,  0.0000,  0.0000,  0.0000]])
    """
    check_shapes({"R": geometry.page_rows}, keys=(keys, "_ Hkv D"), compressed=(compressed, "_ Hkv R D"))
    if kv_scales is None:
        check_dtypes(keys.dtype, compressed=compressed)
    else:
        check_pools(compressed.dtype, kv_scales, keys=keys)
    implementation_of(__name__, implementation, keys).compress_keys(keys, compressed, batch, geometry, kv_scales)
