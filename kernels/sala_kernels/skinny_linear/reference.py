"""The specification of skinny_linear in code."""

import torch

from sala_kernels.contract import working_dtype
from sala_kernels.quantised_weights import Weight


def skinny_linear(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    work = working_dtype(x)
    values = weight if isinstance(weight, torch.Tensor) else weight.dequantize()
    return (x.to(work) @ values.to(work).T).to(x.dtype)
