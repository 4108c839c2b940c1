"""Products of a few rows with a weight matrix, which are bound by reading the weights."""

import torch

from sala_kernels.contract import check_dtypes, check_shapes, implementation_of

MAX_ROWS = 64


def skinny_linear(x: torch.Tensor, weight: torch.Tensor, *, implementation: str | None = None) -> torch.Tensor:
    """``x · weightᵀ``: x [T, K] with T at most MAX_ROWS, weight [N, K], both with contiguous rows -> [T, N].

    Sums are float32 or better. Early launches read weights before the kernel in front of them on the stream has ended,
    so that one must not write them. Raises ValueError or TypeError on a shape or dtype that does not fit.
    """
    check_shapes(x=(x, "T K"), weight=(weight, "N K"))
    check_dtypes(x.dtype, weight=weight)
    if x.shape[0] > MAX_ROWS:
        raise ValueError(f"x: got {x.shape[0]} rows, allowed are at most {MAX_ROWS}")
    for name, tensor in {"x": x, "weight": weight}.items():
        if tensor.stride(1) != 1:
            raise ValueError(f"{name}: expected contiguous rows, got strides {tensor.stride()}")
    return implementation_of(__name__, implementation, x).skinny_linear(x, weight)
