"""The specification of skinny_linear in code."""

import torch

from sala_kernels.contract import working_dtype


def skinny_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    work = working_dtype(x)
    return (x.to(work) @ weight.to(work).T).to(x.dtype)
