"""The specification of lightning_step in code."""

import torch

from sala_kernels.lightning import lightning_recurrent
from sala_kernels.qk_norm_rope import qk_norm_rope


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
) -> torch.Tensor:
    how = {"implementation": "reference"}
    q, k = qk_norm_rope(q, k, q_weight, k_weight, positions, inv_freq, eps, **how)
    return lightning_recurrent(q, k, v, states, state_slots, snapshot_slots, log_decay, scale, **how)
