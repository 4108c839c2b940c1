"""RMSNorm of the lightning output over its full width, then the sigmoid output gate."""

import torch

from sala_kernels.contract import check_dtypes, check_shapes, implementation_of


def gated_norm(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    mean_square: torch.Tensor | None = None,
    *,
    implementation: str | None = None,
) -> torch.Tensor:
    """``RMSNorm(x; weight) ⊙ sigmoid(gate)``: x, gate [T, W] (rows may be strided), weight [W] -> [T, W].

    mean_square: [T] float32 mean of x² over the full width, for callers that hold a shard of it: the sum of all
    shards' mean_square_part. Computed from x otherwise. Rounds as the released model does: after the division,
    the weight, the sigmoid and the product. Raises ValueError or TypeError on a shape or dtype that does not fit.
    """
    check_shapes(x=(x, "T W"), gate=(gate, "T W"), weight=(weight, "W"))
    check_dtypes(x.dtype, gate=gate, weight=weight)
    if mean_square is not None:
        check_shapes({"T": x.shape[0]}, mean_square=(mean_square, "T"))
        check_dtypes(torch.float32, mean_square=mean_square)
    return implementation_of(__name__, implementation, x).gated_norm(x, gate, weight, eps, mean_square)


def mean_square_part(x: torch.Tensor, full_width: int, rows: int, *, implementation: str | None = None) -> torch.Tensor:
    """What a shard x [T, W] (rows may be strided) adds to the mean of squares of rows of ``full_width`` columns.

    Returns [rows] float32: ``Σ x² / full_width`` per row, and 0 in the rows from T on, so that a group can add the
    parts up in units of its own. Raises ValueError unless W ≤ full_width and T ≤ rows.
    """
    sizes = check_shapes(x=(x, "T W"))
    for name, least, given in (("full_width", sizes["W"], full_width), ("rows", sizes["T"], rows)):
        if given < least:
            raise ValueError(f"{name}: expected at least {least}, got {given}")
    return implementation_of(__name__, implementation, x).mean_square_part(x, full_width, rows)
