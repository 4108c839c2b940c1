"""RMSNorm over each head of q and k, then rotary position embedding (rotate-half pairs, all dimensions)."""

from typing import NamedTuple

import torch

from sala_kernels.contract import check_dtypes, check_shapes, implementation_of


class Arguments(NamedTuple):
    """What ``qk_norm_rope`` takes, checked, as its implementations take it."""

    q: torch.Tensor
    k: torch.Tensor
    q_weight: torch.Tensor
    k_weight: torch.Tensor
    positions: torch.Tensor
    inv_freq: torch.Tensor
    eps: float


def qk_norm_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    eps: float,
    *,
    implementation: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm and rotation of every head of q and k.

    With ``x' = x / √(mean(x²) + eps)·weight`` and angles ``a_j = position·inv_freq_j``, dimensions j and j + D/2 become
    ``x'_j·cos a_j − x'_{j+D/2}·sin a_j`` and ``x'_{j+D/2}·cos a_j + x'_j·sin a_j``.

    q: [T, H, D], a floating dtype (rows may be strided).
    k: [T, Hk, D], same dtype, with a number of heads of its own (rows may be strided).
    q_weight, k_weight: [D], same dtype.
    positions: [T] integers, from 0.
    inv_freq: [D/2] float32.
    eps: added to the mean of squares.

    Returns new contiguous q and k. The norm rounds as the released model does: once after the division, once after the
    weight. The rotation is computed in float32 or better and rounded once.
    Raises ValueError on a shape that does not fit, TypeError on a dtype that does not fit.
    Source: the lightning layers of the released modelling code; RMSNorm is arXiv 1910.07467, the rotation arXiv
    2104.09864.

    The norm makes twos ones, and the second row is turned by a right angle:

    >>> q, one = torch.full((2, 1, 2), 2.0), torch.ones(2)
    >>> rotated, _ = qk_norm_rope(q, q, one, one, torch.tensor([0, 1]), torch.tensor([torch.pi / 2]), eps=0.0)
    >>> rotated[:, 0].round()
    tensor([[ 1.,  1.],
            [-1.,  1.]])
    """
    check_shapes(
        {"D/2": q.shape[-1] // 2},
        q=(q, "T H D"),
        k=(k, "T Hk D"),
        q_weight=(q_weight, "D"),
        k_weight=(k_weight, "D"),
        positions=(positions, "T"),
        inv_freq=(inv_freq, "D/2"),
    )
    check_dtypes(q.dtype, k=k, q_weight=q_weight, k_weight=k_weight)
    check_dtypes(torch.float32, inv_freq=inv_freq)
    module = implementation_of(__name__, implementation, q)
    return module.qk_norm_rope(Arguments(q, k, q_weight, k_weight, positions, inv_freq, eps))
