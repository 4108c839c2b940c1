"""The sigmoid output gate of the sparse layers."""

import torch

from sala_kernels.contract import check_dtypes, check_shapes, implementation_of
from sala_kernels.float8_rows import Float8Rows


def sigmoid_gate(
    x: torch.Tensor, gate: torch.Tensor, *, to_float8: bool = False, implementation: str | None = None
) -> torch.Tensor | Float8Rows:
    """``x ⊙ sigmoid(gate)``.

    x, gate: [T, W], one floating dtype (rows may be strided).
    to_float8: whether to quantise what would be returned, row by row.

    Returns [T, W], in e4m3 with scales if so. Rounds as the released model does: after the sigmoid and after the
    product; then to e4m3.
    Raises ValueError on a shape that does not fit, TypeError on a dtype that does not fit.
    Source: ``o_gate`` in the sparse layers of the released modelling code.

    A gate of 0 halves, one of 100 is open:

    >>> sigmoid_gate(torch.tensor([[4.0, 6.0]]), torch.tensor([[0.0, 100.0]]))
    tensor([[2., 6.]])
    """
    check_shapes(x=(x, "T W"), gate=(gate, "T W"))
    check_dtypes(x.dtype, gate=gate)
    return implementation_of(__name__, implementation, x).sigmoid_gate(x, gate, to_float8)
