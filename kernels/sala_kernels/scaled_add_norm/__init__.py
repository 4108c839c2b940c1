"""Residual addition with the muP depth factor, and the RMSNorm that follows it."""

import torch

from sala_kernels.contract import check_dtypes, check_shapes, implementation_of


def scaled_add_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    scale: float,
    weight: torch.Tensor,
    eps: float,
    *,
    implementation: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``h = residual + scale·x`` and ``RMSNorm(h; weight)``: x, residual [T, W], weight [W].

    Returns (normed, h), both [T, W] and new. Rounds as the released model does: after the product, the sum,
    the division and the weight. Raises ValueError or TypeError on a shape or dtype that does not fit.
    """
    check_shapes(x=(x, "T W"), residual=(residual, "T W"), weight=(weight, "W"))
    check_dtypes(x.dtype, residual=residual, weight=weight)
    module = implementation_of(__name__, implementation, x)
    return module.scaled_add_norm(x, residual, scale, weight, eps)
