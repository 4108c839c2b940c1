"""The specification of lightning_commit in code."""

import torch

from sala_kernels.lightning_commit import Arguments


def lightning_commit(arguments: Arguments) -> None:
    stash, rows, states, state_slots, accepted_rows, snapshot_slots, snapshot_rows, log_decay = arguments
    decay = log_decay.to(states.dtype).exp()[:, None, None]
    per_request = zip(*(x.tolist() for x in (state_slots, accepted_rows, snapshot_slots, snapshot_rows)), strict=True)
    for request, (slot, accepted, snapshot_slot, snapshot_row) in enumerate(per_request):
        if slot < 0:
            continue
        state = states[:, slot].clone()
        for row in range(accepted + 1):
            if snapshot_slot >= 0 and row == snapshot_row:
                states[:, snapshot_slot] = state
            if row < accepted:
                k, v = stash[:, request * rows + row].to(states.dtype).unbind(1)
                state = decay * state + torch.einsum("lhd,lhe->lhde", k, v)
        states[:, slot] = state
