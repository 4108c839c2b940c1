"""Lightning attention: linear attention with a constant decay per head (Lightning Attention-2, arXiv 2401.04658).

``S_t = λ·S_{t−1} + k_t·v_tᵀ`` and ``o_t = scale·S_tᵀ·q_t`` with ``λ = exp(log_decay)``, per head.
"""

from typing import NamedTuple

import torch

from sala_kernels.contract import check_dtypes, check_shapes, implementation_of

CHUNK_TOKENS = 64


class Arguments(NamedTuple):
    """What ``lightning_chunk`` takes, checked, as its implementations take it."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    states: torch.Tensor
    state_slots: torch.Tensor
    query_start: torch.Tensor
    snapshot_slots: torch.Tensor
    snapshot_tokens: torch.Tensor
    log_decay: torch.Tensor
    scale: float


def lightning_chunk(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    states: torch.Tensor,
    state_slots: torch.Tensor,
    query_start: torch.Tensor,
    snapshot_slots: torch.Tensor,
    snapshot_tokens: torch.Tensor,
    log_decay: torch.Tensor,
    scale: float,
    *,
    implementation: str | None = None,
) -> torch.Tensor:
    """Lightning attention in chunk form, for requests with any number of rows in the step.

    q, k, v: [T, H, D], one floating dtype, each token's heads contiguous; request b owns rows
        ``query_start[b]`` … ``query_start[b+1]−1``.
    states: [slots, H, D (of k), D (of v)] float32, each slot contiguous; read as the state before the step,
        written in place.
    state_slots: [B] int32; −1 skips the request, whose rows are then 0.
    query_start: [B+1] int32 from 0; rows past the last request are 0.
    snapshot_slots: [B] int32; where to store the state after ``snapshot_tokens[b]`` rows of the request as
        well, −1 for nowhere. No two requests may write the same slot.
    snapshot_tokens: [B] int32; a multiple of CHUNK_TOKENS, at most the rows; 0 is the state before the step.
    log_decay: [H] float32, negative.
    scale: factor of the outputs, ``D^−½`` in the released model.

    Returns [T, H, D] in the dtype of q; sums are float32 or better, and on a GPU float32 factors keep 16 bits beside
    bfloat16, and 11 beside float16.
    Raises ValueError on a shape or stride that does not fit, TypeError on a dtype that does not fit.
    Source: Lightning Attention-2 (arXiv 2401.04658), section 3; in the released modelling code the simple_gla of
    flash-linear-attention with a constant decay per head.

    With q = k = 1 and a decay of ½ every output is half the one before plus the value:

    >>> one, states = torch.ones(3, 1, 1), torch.zeros(1, 1, 1, 1)
    >>> slot, rows, decay = torch.tensor([0]).int(), torch.tensor([0, 3]).int(), torch.tensor([0.5]).log()
    >>> lightning_chunk(one, one, one, states, slot, rows, slot - 1, slot, decay, scale=1.0).flatten()
    tensor([1.0000, 1.5000, 1.7500])
    >>> states.item()
    1.75
    """
    check_arguments(q, k, v, states, state_slots, snapshot_slots, log_decay)
    check_shapes(
        {"B": state_slots.shape[0], "B+1": state_slots.shape[0] + 1},
        query_start=(query_start, "B+1"),
        snapshot_tokens=(snapshot_tokens, "B"),
    )
    check_dtypes(torch.int32, query_start=query_start, snapshot_tokens=snapshot_tokens)
    module = implementation_of(__name__, implementation, q)
    return module.lightning_chunk(
        Arguments(q, k, v, states, state_slots, query_start, snapshot_slots, snapshot_tokens, log_decay, scale)
    )


def check_arguments(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    states: torch.Tensor,
    state_slots: torch.Tensor,
    snapshot_slots: torch.Tensor,
    log_decay: torch.Tensor,
) -> None:
    """Raise ValueError or TypeError unless these fit the contracts of lightning attention.

    q, k, v: [T, H, D], one dtype, entries of dimension 0 contiguous.
    states: [slots, H, D, D] float32, or float64 for references, entries of dimension 0 contiguous.
    state_slots, snapshot_slots: [B] int32.
    log_decay: [H] float32.

    Raises ValueError on a shape or stride that does not fit, TypeError on a dtype that does not fit.

    >>> q, slot = torch.zeros(3, 4, 8), torch.tensor([0]).int()
    >>> check_arguments(q, q, q, torch.zeros(1, 2, 8, 8), slot, slot, torch.zeros(4))
    Traceback (most recent call last):
    ValueError: states: expected H = 4, got shape [1, 2, 8, 8]
    """
    check_shapes(
        q=(q, "T H D"),
        k=(k, "T H D"),
        v=(v, "T H D"),
        states=(states, "_ H D D"),
        state_slots=(state_slots, "B"),
        snapshot_slots=(snapshot_slots, "B"),
        log_decay=(log_decay, "H"),
    )
    check_dtypes(q.dtype, k=k, v=v)
    check_dtypes(torch.int32, state_slots=state_slots, snapshot_slots=snapshot_slots)
    check_dtypes(torch.float32, log_decay=log_decay)
    if states.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"states: expected dtype float32 (or float64 in references), got {states.dtype}")
    for name, tensor in {"q": q, "k": k, "v": v, "states": states}.items():
        if not tensor[:1].is_contiguous():
            raise ValueError(f"{name}: expected contiguous entries of dimension 0, got strides {tensor.stride()}")
