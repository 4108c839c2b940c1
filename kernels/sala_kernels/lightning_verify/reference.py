"""The specification of lightning_verify in code."""

import torch

from sala_kernels.lightning_verify import Arguments
from sala_kernels.qk_norm_rope import qk_norm_rope


def lightning_verify(arguments: Arguments) -> torch.Tensor:
    q, k, v, q_weight, k_weight, positions, inv_freq, eps, states, state_slots, stash, log_decay, scale = arguments
    q, k = qk_norm_rope(q, k, q_weight, k_weight, positions, inv_freq, eps, implementation="reference")
    output = torch.zeros_like(q)
    decay = log_decay.to(states.dtype).exp()[:, None, None]
    rows = q.shape[0] // max(len(state_slots), 1)
    for request, slot in enumerate(state_slots.tolist()):
        if slot < 0:
            continue
        state = states[slot]
        for row in range(request * rows, (request + 1) * rows):
            state = decay * state + torch.einsum("hd,he->hde", k[row].to(states.dtype), v[row].to(states.dtype))
            output[row] = (scale * torch.einsum("hd,hde->he", q[row].to(states.dtype), state)).to(q.dtype)
            stash[row, 0], stash[row, 1] = k[row], v[row]
    return output
