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
    """q: [T, H, D], k: [T, Hk, D] (rows may be strided), weights [D], positions [T] int, inv_freq [D/2] float32.

    The norm rounds as the released model does: once after the division, once after the weight. The rotation
    is computed in float32 or better and rounded once. Returns new contiguous q and k. Raises ValueError or
    TypeError on a shape or dtype that does not fit.
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
