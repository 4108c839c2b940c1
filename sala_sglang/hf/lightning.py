"""Lightning attention of one sequence: linear attention with a constant decay per head."""

import torch

CHUNK_TOKENS = 64


def lightning_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    state: torch.Tensor | None,
    log_decay: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``S_t = λ·S_{t−1} + k_t·v_tᵀ``, ``o_t = scale·S_tᵀ·q_t`` with ``λ = exp(log_decay)``, per head.

    q, k, v: [T, H, D], T ≥ 1. state: [H, D (of k), D (of v)] before the first token, None for zeros.
    log_decay: [H] float32. Returns o [T, H, D] in the dtype of q, and the state after the last token in
    float32 (float64 for float64 inputs). Source: Lightning Attention-2, arXiv 2401.04658.
    """
    work = torch.promote_types(q.dtype, torch.float32)
    tokens, heads, dim = q.shape
    if state is None:
        state = q.new_zeros(heads, dim, dim, dtype=work)
    wide = [x.to(work).transpose(0, 1) for x in (q, k, v)]
    whole = tokens - tokens % CHUNK_TOKENS
    outputs = []
    for begin, end, size in ((0, whole, CHUNK_TOKENS), (whole, tokens, tokens - whole)):
        if end > begin:
            parts = [x[:, begin:end].unflatten(1, (-1, size)) for x in wide]
            output, state = _equal_chunks(*parts, state, log_decay.to(work))
            outputs.append(output)
    return (scale * torch.cat(outputs, dim=1)).transpose(0, 1).to(q.dtype), state


def _equal_chunks(q, k, v, state, log_decay):
    """q, k, v: [H, chunks, size, D] -> output [H, chunks·size, D] without the scale, state after the last chunk."""
    size = q.shape[2]
    row = torch.arange(size, device=q.device, dtype=q.dtype)
    rate = log_decay[:, None, None]
    # λ^(i−j) comes from the difference i−j: λ^i·λ^(−j) would overflow for the fastest heads.
    decay = (rate * (row[:, None] - row).clamp(min=0)).exp().tril()
    inside = ((q @ k.mT) * decay[:, None]) @ v

    to_end = (rate * (size - 1 - row)[:, None]).exp()
    updates = (k * to_end[:, None]).mT @ v
    before = []
    for update in updates.unbind(1):
        before.append(state)
        state = (rate * size).exp() * state + update
    from_start = (rate * (row + 1)[:, None]).exp()
    across = (q * from_start[:, None]) @ torch.stack(before, dim=1)
    return (inside + across).flatten(1, 2), state
