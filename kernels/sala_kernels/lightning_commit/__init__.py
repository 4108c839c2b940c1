"""The states of all lightning layers after the rows of a verify step that were accepted."""

from typing import NamedTuple

import torch

from sala_kernels.contract import check_dtypes, check_shapes, implementation_of


class Arguments(NamedTuple):
    """What ``lightning_commit`` takes, checked, as its implementations take it."""

    stash: torch.Tensor
    rows: int
    states: torch.Tensor
    state_slots: torch.Tensor
    accepted_rows: torch.Tensor
    snapshot_slots: torch.Tensor
    snapshot_rows: torch.Tensor
    log_decay: torch.Tensor


def lightning_commit(
    stash: torch.Tensor,
    rows: int,
    states: torch.Tensor,
    state_slots: torch.Tensor,
    accepted_rows: torch.Tensor,
    snapshot_slots: torch.Tensor,
    snapshot_rows: torch.Tensor,
    log_decay: torch.Tensor,
    *,
    implementation: str | None = None,
) -> None:
    """``S = λ·S + k·vᵀ`` for the accepted rows of every request, in every layer, from what lightning_verify kept.

    stash: [L, B·rows or more, 2, H, D], a floating dtype, contiguous: k and v of L layers, as lightning_verify writes
        them. Request b owns rows ``b·rows`` … ``b·rows + rows − 1``.
    rows: of a request, R.
    states: [L, slots, H, D (of k), D (of v)] float32, each slot contiguous; written in place.
    state_slots: [B] int32; −1 skips the request. No two requests may have the same slot.
    accepted_rows: [B] int32; the first so many rows of the request are taken in, 0 to R.
    snapshot_slots: [B] int32; where to store the state after ``snapshot_rows`` as well, −1 for nowhere. No two
        requests may write the same slot.
    snapshot_rows: [B] int32; 0, the state as it is, to ``accepted_rows``. Read where there is a snapshot.
    log_decay: [H] float32, negative; ``λ = exp(log_decay)``.

    Sums are float32, in the order of lightning_step. Raises ValueError on a shape or stride that does not fit,
    TypeError on a dtype that does not fit.
    Source: as lightning_step.

    One layer, two rows of which the first is accepted, on a state of ones with a decay of ½:

    >>> stash = torch.tensor([[[[[1.0, 1.0]], [[1.0, 2.0]]], [[[9.0, 9.0]], [[9.0, 9.0]]]]])
    >>> states, slot, one = torch.ones(1, 1, 1, 2, 2), torch.tensor([0]).int(), torch.tensor([1]).int()
    >>> lightning_commit(stash, 2, states, slot, one, slot - 1, slot, torch.tensor([0.5]).log())
    >>> states.flatten()
    tensor([1.5000, 2.5000, 1.5000, 2.5000])
    """
    sizes = check_shapes(
        stash=(stash, "L T 2 H D"),
        states=(states, "L _ H D D"),
        state_slots=(state_slots, "B"),
        accepted_rows=(accepted_rows, "B"),
        snapshot_slots=(snapshot_slots, "B"),
        snapshot_rows=(snapshot_rows, "B"),
        log_decay=(log_decay, "H"),
    )
    check_dtypes(
        torch.int32,
        state_slots=state_slots,
        accepted_rows=accepted_rows,
        snapshot_slots=snapshot_slots,
        snapshot_rows=snapshot_rows,
    )
    check_dtypes(torch.float32, log_decay=log_decay)
    if states.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"states: expected dtype float32 (or float64 in references), got {states.dtype}")
    if stash.shape[1] < sizes["B"] * rows or not stash.is_contiguous():
        raise ValueError(
            f"stash: expected {sizes['B'] * rows} contiguous rows per layer, got {list(stash.shape)}, "
            f"strides {stash.stride()}"
        )
    if not states[:1, :1].is_contiguous():
        raise ValueError(f"states: expected contiguous slots, got strides {states.stride()}")
    module = implementation_of(__name__, implementation, states)
    module.lightning_commit(
        Arguments(stash, rows, states, state_slots, accepted_rows, snapshot_slots, snapshot_rows, log_decay)
    )
