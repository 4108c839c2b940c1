"""The specification of lightning_step in code."""

import torch

from sala_kernels.lightning_step import Arguments
from sala_kernels.qk_norm_rope import qk_norm_rope


def lightning_step(arguments: Arguments) -> torch.Tensor:
    q, k, v, q_weight, k_weight, positions, inv_freq, eps, states, state_slots, snapshot_slots, log_decay, scale = (
        arguments
    )
    q, k = qk_norm_rope(q, k, q_weight, k_weight, positions, inv_freq, eps, implementation="reference")
    output = torch.zeros_like(q)
    for request, slot in enumerate(state_slots.tolist()):
        if slot < 0:
            continue
        update = torch.einsum("hd,he->hde", k[request].to(states.dtype), v[request].to(states.dtype))
        state = log_decay.to(states.dtype).exp()[:, None, None] * states[slot] + update
        output[request] = (scale * torch.einsum("hd,hde->he", q[request].to(states.dtype), state)).to(q.dtype)
        states[slot] = state
        if snapshot_slots[request] >= 0:
            states[snapshot_slots[request]] = state
    return output
