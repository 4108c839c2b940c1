"""The specification of scaled_add_norm in code."""

import torch

from sala_kernels.contract import working_dtype


def scaled_add_norm(
    x: torch.Tensor, residual: torch.Tensor, scale: float, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = residual + x * scale
    wide = hidden.to(working_dtype(x))
    normed = (wide * (wide.pow(2).mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype) * weight
    return normed, hidden
