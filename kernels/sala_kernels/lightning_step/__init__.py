"""A decode step of a lightning layer: qk_norm_rope, then lightning attention in its recurrent form."""

from typing import NamedTuple

import torch

from sala_kernels.contract import check_dtypes, check_shapes, implementation_of
from sala_kernels.lightning import check_arguments


class Arguments(NamedTuple):
    """What ``lightning_step`` takes, checked, as its implementations take it."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    q_weight: torch.Tensor
    k_weight: torch.Tensor
    positions: torch.Tensor
    inv_freq: torch.Tensor
    eps: float
    states: torch.Tensor
    state_slots: torch.Tensor
    snapshot_slots: torch.Tensor
    log_decay: torch.Tensor
    scale: float


def lightning_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    eps: float,
    states: torch.Tensor,
    state_slots: torch.Tensor,
    snapshot_slots: torch.Tensor,
    log_decay: torch.Tensor,
    scale: float,
    *,
    implementation: str | None = None,
) -> torch.Tensor:
    """One row per request: q, k, v [B, H, D] as projected, each row's heads contiguous.

    q_weight, k_weight [D], positions [B] int, inv_freq [D/2] float32 and eps as in qk_norm_rope.
    states: [slots, H, D (of k), D (of v)] float32, each slot contiguous; written in place.
    state_slots: [B] int32; −1 skips the request, whose row is then 0. snapshot_slots: [B] int32; where to store the
    state after the row as well, −1 for nowhere. No two requests may write the same slot. log_decay: [H] float32,
    negative.

    Returns [B, H, D] in the dtype of q: q and k rounded as by qk_norm_rope, float32 sums from there on. Raises
    ValueError or TypeError on a shape or dtype that does not fit.
    """
    check_arguments(q, k, v, states, state_slots, snapshot_slots, log_decay)
    check_shapes(
        {"B": q.shape[0], "D": q.shape[2], "D/2": q.shape[2] // 2},
        state_slots=(state_slots, "B"),
        q_weight=(q_weight, "D"),
        k_weight=(k_weight, "D"),
        positions=(positions, "B"),
        inv_freq=(inv_freq, "D/2"),
    )
    check_dtypes(q.dtype, q_weight=q_weight, k_weight=k_weight)
    check_dtypes(torch.float32, inv_freq=inv_freq)
    norm_rope = q_weight, k_weight, positions, inv_freq, eps
    module = implementation_of(__name__, implementation, q)
    return module.lightning_step(Arguments(q, k, v, *norm_rope, states, state_slots, snapshot_slots, log_decay, scale))
