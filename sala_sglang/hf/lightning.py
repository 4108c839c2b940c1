"""Lightning attention: linear attention with a constant decay per head."""

from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch

CHUNK_TOKENS = 64
SEGMENT_CHUNKS = 64  # chunks whose states are found at once, from a matrix of their mutual decays


def lightning_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    state: torch.Tensor | None,
    log_decay: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``S_t = λ·S_{t−1} + k_t·v_tᵀ``, ``o_t = scale·S_tᵀ·q_t`` with ``λ = exp(log_decay)``, per head.

    q, k, v: [B, T, H, D], T ≥ 1. state: [B, H, D (of k), D (of v)] before the first token, None for zeros.
    log_decay: [H] float32. Returns o [B, T, H, D] in the dtype of q, and the state after the last token in
    float32 (float64 for float64 inputs), under autocast too. Source: Lightning Attention-2, arXiv 2401.04658.

    On a GPU the kernels of flash-linear-attention serve 16-bit inputs of a chunk and more where they are installed;
    they round the states that a chunk reads to the dtype of q.
    """
    if q.is_cuda and q.dtype.itemsize == 2 and q.shape[1] >= CHUNK_TOKENS and (kernels := _kernels()):
        return kernels(q, k, v, g_gamma=log_decay, scale=scale, initial_state=state, output_final_state=True)
    work = torch.promote_types(q.dtype, torch.float32)
    batch, tokens, heads, dim = q.shape
    if state is None:
        state = q.new_zeros(batch, heads, dim, dim, dtype=work)
    wide = [x.to(work).transpose(1, 2) for x in (q, k, v)]
    outputs = []
    device = q.device.type  # "meta" knows no autocast
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        for begin, end, size in _segments(tokens):
            q_part, k_part, v_part = (x[:, :, begin:end].unflatten(2, (-1, size)) for x in wide)
            output, state = _equal_chunks(q_part, k_part, v_part, state, log_decay.to(work))
            outputs.append(output)
        output = scale * torch.cat(outputs, dim=2)
    return output.transpose(1, 2).to(q.dtype), state


def _segments(tokens: int) -> list[tuple[int, int, int]]:
    """(begin, end, chunk size) of runs of equal chunks: full segments, the chunks left, the tokens left."""
    whole = tokens - tokens % CHUNK_TOKENS
    bounds = [*range(0, whole, CHUNK_TOKENS * SEGMENT_CHUNKS), whole]
    runs = [(begin, end, CHUNK_TOKENS) for begin, end in pairwise(bounds)]
    return [*runs, (whole, tokens, tokens - whole)] if tokens > whole else runs


def _equal_chunks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: torch.Tensor, log_decay: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k, v: [B, H, chunks, size, D] -> output [B, H, chunks·size, D] without the scale, state after the last."""
    chunks, size = q.shape[2:4]
    row = torch.arange(size, device=q.device, dtype=q.dtype)
    rate = log_decay[:, None, None]
    inside = ((q @ k.mT) * _powers(rate, row)[:, None]) @ v

    to_end = (rate * (size - 1 - row)[:, None]).exp()
    updates = (k * to_end[:, None]).mT @ v
    # What every chunk finds, and the next segment: the decayed state and the decayed updates of earlier chunks.
    number = torch.arange(chunks + 1, device=q.device, dtype=q.dtype)
    earlier = _powers(rate * size, number[:-1])
    found = (earlier @ updates.flatten(3)).unflatten(3, updates.shape[3:])
    carried = (rate[..., None] * size * number[:, None, None]).exp() * state[:, :, None]
    after = carried[:, :, 1:] + found
    before = torch.cat((carried[:, :, :1], after[:, :, :-1]), dim=2)

    from_start = (rate * (row + 1)[:, None]).exp()
    across = (q * from_start[:, None]) @ before
    return (inside + across).flatten(2, 3), after[:, :, -1]


def _powers(rate: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """λ^(i − j) where i ≥ j, else 0: rate [H, 1, 1], row [n] -> [H, n, n].

    From the difference: λ^i·λ^(−j) would overflow for the fastest heads.
    """
    difference = row[:, None] - row
    return (rate * difference.clamp(min=0)).exp().tril()


@cache
def _kernels() -> Any:
    """Chunks with gradients by flash-linear-attention; None where it is not installed."""
    if find_spec("fla") is None:
        return None
    from fla.ops.simple_gla import chunk_simple_gla

    return chunk_simple_gla
