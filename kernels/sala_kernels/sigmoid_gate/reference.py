"""The specification of sigmoid_gate in code."""

import torch

from sala_kernels.contract import working_dtype


def sigmoid_gate(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    return x * gate.to(working_dtype(gate)).sigmoid().to(x.dtype)
