"""The specification of lightning attention in code."""

import torch

from sala_kernels.lightning import CHUNK_TOKENS, Arguments


def lightning_chunk(arguments: Arguments) -> torch.Tensor:
    q, k, v, states, state_slots, query_start, snapshot_slots, snapshot_tokens, log_decay, scale = arguments
    output = torch.zeros_like(q)
    starts = query_start.tolist()
    for request, slot in enumerate(state_slots.tolist()):
        if slot < 0:
            continue
        state = states[slot].clone()
        if snapshot_slots[request] >= 0 and snapshot_tokens[request] == 0:
            states[snapshot_slots[request]] = state
        for begin in range(starts[request], starts[request + 1], CHUNK_TOKENS):
            rows = slice(begin, min(begin + CHUNK_TOKENS, starts[request + 1]))
            result, state = chunk_step(q[rows], k[rows], v[rows], state, log_decay, scale)
            output[rows] = result.to(output.dtype)
            if snapshot_slots[request] >= 0 and rows.stop - starts[request] == snapshot_tokens[request]:
                states[snapshot_slots[request]] = state
        states[slot] = state
    return output


def chunk_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    state: torch.Tensor,
    log_decay: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One chunk of one request: q, k, v [n, H, D] and state [H, D, D] -> output [n, H, D], new state."""
    q, k, v, decay = (x.to(state.dtype) for x in (q, k, v, log_decay))
    row = torch.arange(len(q), device=q.device, dtype=state.dtype)
    # λ^(i−j) from the difference: λ^i·λ^(−j) would overflow for the fastest heads.
    distance = row[:, None] - row
    mask = (decay[:, None, None] * distance.clamp(min=0)).exp().masked_fill(distance < 0, 0)
    inside = (torch.einsum("ihd,jhd->hij", q, k) * mask) @ v.transpose(0, 1)
    before = (decay[:, None] * (row + 1)).exp()[..., None] * torch.einsum("ihd,hde->hie", q, state)
    left = (decay[:, None] * (len(q) - 1 - row)).exp()
    state = (decay * len(q)).exp()[:, None, None] * state + torch.einsum("hj,jhd,jhe->hde", left, k, v)
    return scale * (inside + before).transpose(0, 1), state
