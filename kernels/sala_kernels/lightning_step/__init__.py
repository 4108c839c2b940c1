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
    """One row per request: qk_norm_rope of q and k, then ``S = λ·S + k·vᵀ`` and ``o = scale·Sᵀ·q``.

    q, k, v: [B, H, D] as projected, one floating dtype, each row's heads contiguous.
    q_weight, k_weight: [D], same dtype, as in qk_norm_rope.
    positions: [B] integers, as in qk_norm_rope.
    inv_freq: [D/2] float32, as in qk_norm_rope.
    eps: as in qk_norm_rope.
    states: [slots, H, D (of k), D (of v)] float32, each slot contiguous; written in place.
    state_slots: [B] int32; −1 skips the request, whose row is then 0.
    snapshot_slots: [B] int32; where to store the state after the row as well, −1 for nowhere. No two requests may write
        the same slot.
    log_decay: [H] float32, negative; ``λ = exp(log_decay)``.
    scale: factor of the outputs, ``D^−½`` in the released model.

    Returns [B, H, D] in the dtype of q: q and k rounded as by qk_norm_rope, float32 sums from there on.
    Raises ValueError on a shape or stride that does not fit, TypeError on a dtype that does not fit.
    Source: as lightning_chunk and qk_norm_rope.

    At position 0 nothing is rotated, and ones are normed already. With a decay of ½ the new state has rows 1.5, 2.5:

    >>> one, v, states = torch.ones(1, 1, 2), torch.tensor([[[1.0, 2.0]]]), torch.ones(1, 1, 2, 2)
    >>> slot, decay = torch.tensor([0]).int(), torch.tensor([0.5]).log()
    >>> norm_rope = torch.ones(2), torch.ones(2), slot, torch.ones(1), 0.0
    >>> lightning_step(one, one, v, *norm_rope, states, slot, slot - 1, decay, scale=1.0)
    tensor([[[3., 5.]]])
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
