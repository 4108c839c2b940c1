"""The specification of gated_norm and mean_square_part in code."""

import torch

from sala_kernels.contract import working_dtype
from sala_kernels.float8_rows import Float8Rows, quantize_rows


def gated_norm(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    mean_square: torch.Tensor | None,
    to_float8: bool,
) -> torch.Tensor | Float8Rows:
    wide = x.to(working_dtype(x))
    power = wide.pow(2).mean(-1) if mean_square is None else mean_square
    normed = (wide * (power + eps).rsqrt()[:, None]).to(x.dtype) * weight
    output = normed * gate.to(wide.dtype).sigmoid().to(x.dtype)
    return quantize_rows(output) if to_float8 else output


def mean_square_part(x: torch.Tensor, full_width: int, rows: int) -> torch.Tensor:
    part = x.to(working_dtype(x)).pow(2).sum(-1) / full_width
    return torch.nn.functional.pad(part, (0, rows - x.shape[0])).float()
