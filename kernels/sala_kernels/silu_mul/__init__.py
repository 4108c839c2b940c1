"""The activation of the MLP, with its product in FP8."""

import torch

from sala_kernels.contract import check_shapes, implementation_of
from sala_kernels.float8_rows import Float8Rows


def silu_mul(gate_up: torch.Tensor, *, implementation: str | None = None) -> Float8Rows:
    """``gate ⊙ sigmoid(gate) ⊙ up`` in e4m3, for rows that hold gate and up next to each other.

    gate_up: [T, 2W], a floating dtype (rows may be strided).

    Returns rows [T, W] in e4m3 with scales. They are those of the product rounded once to the dtype of ``gate_up``,
    which is how SGLang's activation rounds on a GPU; in 16 bits that one serves.
    Raises ValueError on an odd number of columns.
    Source: the MLP of the released modelling code, which is SwiGLU (arXiv 2002.05202).

    >>> silu_mul(torch.tensor([[100.0, 100.0, 2.0, -4.0]])).codes
    tensor([[ 224., -448.]], dtype=torch.float8_e4m3fn)
    """
    columns = check_shapes(gate_up=(gate_up, "T 2W"))["2W"]
    if columns % 2:
        raise ValueError(f"gate_up: expected an even number of columns, got {columns}")
    return implementation_of(__name__, implementation, gate_up).silu_mul(gate_up)
