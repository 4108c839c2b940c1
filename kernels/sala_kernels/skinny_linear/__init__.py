"""Products of a few rows with a weight matrix, which are bound by reading the weights."""

import torch

from sala_kernels.contract import check_dtypes, check_shapes, implementation_of

MAX_ROWS = 64


def skinny_linear(x: torch.Tensor, weight: torch.Tensor, *, implementation: str | None = None) -> torch.Tensor:
    """``x · weightᵀ`` for a few rows.

    x: [T, K] with T at most MAX_ROWS, a floating dtype, rows contiguous.
    weight: [N, K], same dtype, rows contiguous.

    Returns [T, N]; sums are float32 or better. Early launches read weights before the kernel in front of them on the
    stream has ended, so that one must not write them.
    Raises ValueError on a shape or stride that does not fit and on more than MAX_ROWS rows, TypeError on a dtype that
    does not fit.
    Source: the linear layers of the released modelling code, which have no bias.

    >>> skinny_linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]))
    tensor([[11., 17., 23.]])
    """
    check_shapes(x=(x, "T K"), weight=(weight, "N K"))
    check_dtypes(x.dtype, weight=weight)
    if x.shape[0] > MAX_ROWS:
        raise ValueError(f"x: got {x.shape[0]} rows, allowed are at most {MAX_ROWS}")
    for name, tensor in {"x": x, "weight": weight}.items():
        if tensor.stride(1) != 1:
            raise ValueError(f"{name}: expected contiguous rows, got strides {tensor.stride()}")
    return implementation_of(__name__, implementation, x).skinny_linear(x, weight)
