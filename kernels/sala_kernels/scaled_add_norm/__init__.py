"""Residual addition with the muP depth factor, and the RMSNorm that follows it."""

import torch

from sala_kernels.contract import check_dtypes, check_shapes, implementation_of
from sala_kernels.float8_rows import Float8Rows


def scaled_add_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    scale: float,
    weight: torch.Tensor,
    eps: float,
    *,
    to_float8: bool = False,
    implementation: str | None = None,
) -> tuple[torch.Tensor | Float8Rows, torch.Tensor]:
    """``h = residual + scale·x`` and ``RMSNorm(h; weight) = h / √(mean(h²) + eps) ⊙ weight``.

    x, residual: [T, W], one floating dtype.
    scale: factor of x; ``scale_depth / √layers`` in the released model.
    weight: [W], same dtype.
    eps: added to the mean of squares.
    to_float8: whether to quantise the normed rows that would be returned, row by row.

    Returns (normed, h), both [T, W] and new, normed in e4m3 with scales if so. Rounds as the released model does: after
    the product, the sum, the division and the weight; then to e4m3.
    Raises ValueError on a shape that does not fit, TypeError on a dtype that does not fit.
    Source: the decoder layer of the released modelling code; RMSNorm is arXiv 1910.07467.

    >>> x, residual, weight = torch.tensor([[2.0, 2.0]]), torch.tensor([[1.0, -3.0]]), torch.tensor([1.0, 10.0])
    >>> scaled_add_norm(x, residual, 0.5, weight, eps=0.0)
    (tensor([[  1., -10.]]), tensor([[ 2., -2.]]))
    """
    check_shapes(x=(x, "T W"), residual=(residual, "T W"), weight=(weight, "W"))
    check_dtypes(x.dtype, residual=residual, weight=weight)
    module = implementation_of(__name__, implementation, x)
    return module.scaled_add_norm(x, residual, scale, weight, eps, to_float8)
