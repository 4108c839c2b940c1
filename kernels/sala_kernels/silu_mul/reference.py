"""The specification of silu_mul in code."""

import torch

from sala_kernels.contract import working_dtype
from sala_kernels.float8_rows import Float8Rows, quantize_rows


def silu_mul(gate_up: torch.Tensor) -> Float8Rows:
    gate, up = gate_up.to(working_dtype(gate_up)).chunk(2, dim=-1)
    return quantize_rows((torch.nn.functional.silu(gate) * up).to(gate_up.dtype))
