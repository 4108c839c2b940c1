"""Several rows per request of a lightning layer, of which not all may stay: speculative decoding asks so."""

from typing import NamedTuple

import torch

from sala_kernels.contract import check_dtypes, check_shapes, implementation_of
from sala_kernels.lightning import check_arguments


class Arguments(NamedTuple):
    """What ``lightning_verify`` takes, checked, as its implementations take it."""

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
    stash: torch.Tensor
    log_decay: torch.Tensor
    scale: float


def lightning_verify(
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
    stash: torch.Tensor,
    log_decay: torch.Tensor,
    scale: float,
    *,
    implementation: str | None = None,
) -> torch.Tensor:
    """R rows per request as R calls of lightning_step would give them, but the states stay what they are.

    Instead, k as normed and rotated and v of every row are kept, from which ``lightning_commit`` makes the state after
    as many rows as were accepted.

    q, k, v: [T, H, D] as projected, one floating dtype, each row's heads contiguous; ``T = B·R``, and request b owns
        rows ``b·R`` … ``b·R + R − 1``.
    q_weight, k_weight: [D], same dtype, as in qk_norm_rope.
    positions: [T] integers, as in qk_norm_rope.
    inv_freq: [D/2] float32, as in qk_norm_rope.
    eps: as in qk_norm_rope.
    states: [slots, H, D (of k), D (of v)] float32, each slot contiguous; read only.
    state_slots: [B] int32; −1 skips the request, whose rows are then 0.
    stash: [T or more, 2, H, D], dtype of q, contiguous; k and v of row t are written to ``stash[t]``. Rows of requests
        that are skipped, and those behind the T-th, stay as they are.
    log_decay: [H] float32, negative; ``λ = exp(log_decay)``.
    scale: factor of the outputs, ``D^−½`` in the released model.

    Returns [T, H, D] in the dtype of q: q and k rounded as by qk_norm_rope, float32 sums from there on.
    Raises ValueError on a shape or stride that does not fit, TypeError on a dtype that does not fit.
    Source: as lightning_step.

    Two rows of ones at position 0, where nothing is rotated, on a state of ones with a decay of ½:

    >>> rows, v = torch.ones(2, 1, 2), torch.tensor([[[1.0, 2.0]], [[1.0, 2.0]]])
    >>> states, stash, slot = torch.ones(1, 1, 2, 2), torch.zeros(2, 2, 1, 2), torch.tensor([0]).int()
    >>> norm_rope = torch.ones(2), torch.ones(2), torch.tensor([0, 0]), torch.ones(1), 0.0
    >>> decay = torch.tensor([0.5]).log()
    >>> lightning_verify(rows, rows, v, *norm_rope, states, slot, stash, decay, scale=1.0).flatten()
    tensor([3.0000, 5.0000, 3.5000, 6.5000])
    >>> states.flatten(), stash[1].flatten()
    (tensor([1., 1., 1., 1.]), tensor([1., 1., 1., 2.]))
    """
    check_arguments(q, k, v, states, state_slots, state_slots, log_decay)
    rows, requests = q.shape[0], state_slots.shape[0]
    if rows % max(requests, 1):
        raise ValueError(f"q: expected T%B = 0, got shape {list(q.shape)} with B = {requests}")
    check_shapes(
        {"T": rows, "H": q.shape[1], "D": q.shape[2], "D/2": q.shape[2] // 2},
        q_weight=(q_weight, "D"),
        k_weight=(k_weight, "D"),
        positions=(positions, "T"),
        inv_freq=(inv_freq, "D/2"),
        stash=(stash, "_ 2 H D"),
    )
    check_dtypes(q.dtype, q_weight=q_weight, k_weight=k_weight, stash=stash)
    check_dtypes(torch.float32, inv_freq=inv_freq)
    if stash.shape[0] < rows or not stash.is_contiguous():
        raise ValueError(f"stash: expected {rows} contiguous rows, got {list(stash.shape)}, strides {stash.stride()}")
    norm_rope = q_weight, k_weight, positions, inv_freq, eps
    module = implementation_of(__name__, implementation, q)
    return module.lightning_verify(Arguments(q, k, v, *norm_rope, states, state_slots, stash, log_decay, scale))
