"""RMSNorm of the lightning output over its full width, then the sigmoid output gate."""

import torch

from sala_kernels.contract import check_dtypes, check_shapes, implementation_of
from sala_kernels.float8_rows import Float8Rows


def gated_norm(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    mean_square: torch.Tensor | None = None,
    *,
    to_float8: bool = False,
    implementation: str | None = None,
) -> torch.Tensor | Float8Rows:
    """``RMSNorm(x; weight) ⊙ sigmoid(gate)`` with ``RMSNorm(x; weight) = x / √(mean(x²) + eps) ⊙ weight``.

    x, gate: [T, W], one floating dtype (rows may be strided).
    weight: [W], same dtype.
    eps: added to the mean of squares.
    mean_square: [T] float32 mean of x² over the full width, for callers that hold a shard of it: the sum of all
        shards' mean_square_part. Computed from x otherwise.
    to_float8: whether to quantise what would be returned, row by row.

    Returns [T, W], in e4m3 with scales if so. Rounds as the released model does: after the division, the weight, the
    sigmoid and the product; then to e4m3.
    Raises ValueError on a shape that does not fit, TypeError on a dtype that does not fit.
    Source: ``o_norm`` and ``z_proj`` of the released modelling code; RMSNorm is arXiv 1910.07467.

    The mean of squares is 4, and a gate of 0 halves:

    >>> x, weight = torch.tensor([[2.0, -2.0]]), torch.tensor([1.0, 3.0])
    >>> gated_norm(x, torch.zeros(1, 2), weight, eps=0.0)
    tensor([[ 0.5000, -1.5000]])
    """
    check_shapes(x=(x, "T W"), gate=(gate, "T W"), weight=(weight, "W"))
    check_dtypes(x.dtype, gate=gate, weight=weight)
    if mean_square is not None:
        check_shapes({"T": x.shape[0]}, mean_square=(mean_square, "T"))
        check_dtypes(torch.float32, mean_square=mean_square)
    return implementation_of(__name__, implementation, x).gated_norm(x, gate, weight, eps, mean_square, to_float8)


def mean_square_part(x: torch.Tensor, full_width: int, rows: int, *, implementation: str | None = None) -> torch.Tensor:
    """What a shard x adds to the mean of squares of rows of ``full_width`` columns: ``Σ x² / full_width`` per row.

    x: [T, W], a floating dtype (rows may be strided).
    full_width: columns of all shards together, at least W.
    rows: length of the result, at least T.

    Returns [rows] float32: the sums, and 0 in the rows from T on, so that a group can add the parts up in units of its
    own.
    Raises ValueError on a shape that does not fit, and unless W ≤ full_width and T ≤ rows.
    Source: the mean in RMSNorm (arXiv 1910.07467), taken apart over shards.

    One row, ``(3² + 4²) / 10``, and room for three:

    >>> mean_square_part(torch.tensor([[3.0, 4.0]]), full_width=10, rows=3)
    tensor([2.5000, 0.0000, 0.0000])
    """
    sizes = check_shapes(x=(x, "T W"))
    for name, least, given in (("full_width", sizes["W"], full_width), ("rows", sizes["T"], rows)):
        if given < least:
            raise ValueError(f"{name}: expected at least {least}, got {given}")
    return implementation_of(__name__, implementation, x).mean_square_part(x, full_width, rows)
