"""The specification of sigmoid_gate in code."""

import torch

from sala_kernels.contract import working_dtype
from sala_kernels.float8_rows import Float8Rows, quantize_rows


def sigmoid_gate(x: torch.Tensor, gate: torch.Tensor, to_float8: bool) -> torch.Tensor | Float8Rows:
    output = x * gate.to(working_dtype(gate)).sigmoid().to(x.dtype)
    return quantize_rows(output) if to_float8 else output
