"""The sigmoid output gate of the sparse layers."""

import torch

from sala_kernels.contract import check_dtypes, check_shapes, implementation_of


def sigmoid_gate(x: torch.Tensor, gate: torch.Tensor, *, implementation: str | None = None) -> torch.Tensor:
    """``x ⊙ sigmoid(gate)``: x, gate [T, W] (rows may be strided) -> [T, W].

    Rounds as the released model does: after the sigmoid and after the product. Raises ValueError or TypeError on a
    shape or dtype that does not fit.
    """
    check_shapes(x=(x, "T W"), gate=(gate, "T W"))
    check_dtypes(x.dtype, gate=gate)
    return implementation_of(__name__, implementation, x).sigmoid_gate(x, gate)
