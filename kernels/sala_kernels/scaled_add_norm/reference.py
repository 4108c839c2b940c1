"""The specification of scaled_add_norm in code."""

import torch

from sala_kernels.contract import working_dtype
from sala_kernels.float8_rows import Float8Rows, quantize_rows


def scaled_add_norm(
    x: torch.Tensor, residual: torch.Tensor, scale: float, weight: torch.Tensor, eps: float, to_float8: bool
) -> tuple[torch.Tensor | Float8Rows, torch.Tensor]:
    hidden = residual + x * scale
    wide = hidden.to(working_dtype(x))
    normed = (wide * (wide.pow(2).mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype) * weight
    return quantize_rows(normed) if to_float8 else normed, hidden
