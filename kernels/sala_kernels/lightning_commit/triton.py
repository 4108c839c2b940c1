"""lightning_commit on a GPU: one launch, a program per layer, request, head and slice of the value dimension."""

import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.lightning_commit import Arguments
from sala_kernels.lightning_step.common import next_state

VALUE_COLUMNS = 32  # per program, as in lightning_step


def lightning_commit(arguments: Arguments) -> None:
    stash, rows, states, state_slots, accepted_rows, snapshot_slots, snapshot_rows, log_decay = arguments
    layers, _, _, heads, dim = stash.shape
    columns = min(dim, VALUE_COLUMNS)
    # Requests last: their number is bounded by that of layers and requests together, 65,535, of a grid's third axis.
    _commit_kernel[(dim // columns, heads, layers * len(state_slots))](
        (stash, stash.stride(0)),
        (states, states.stride(0), states.stride(1)),
        (state_slots.contiguous(), accepted_rows.contiguous()),
        (snapshot_slots.contiguous(), snapshot_rows.contiguous()),
        log_decay.contiguous(),
        len(state_slots),
        ROWS=rows,
        D=dim,
        BV=columns,
        **dependent_launch(states.device),
        num_warps=4,
    )


@triton.jit(do_not_specialize=["requests"])
def _commit_kernel(
    stash,
    states,
    accepted,
    snapshots,
    p_log_decay,
    requests,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    BV: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_predecessor(DEPENDENT)
    p_stash, stash_stride = stash
    p_states, layer_stride, slot_stride = states
    p_state_slots, p_accepted_rows = accepted
    p_snapshot_slots, p_snapshot_rows = snapshots
    i_head, heads = tl.program_id(1), tl.num_programs(1)
    i_layer, i_request = (tl.program_id(2) // requests).to(tl.int64), tl.program_id(2) % requests
    slot = tl.load(p_state_slots + i_request)
    rows = tl.load(p_accepted_rows + i_request)
    snapshot_slot = tl.load(p_snapshot_slots + i_request)
    snapshot_row = tl.load(p_snapshot_rows + i_request)
    if (slot < 0) | ((rows == 0) & (snapshot_slot < 0)):
        return

    i_column = tl.program_id(0) * BV
    o_dim, o_column = tl.arange(0, D), tl.arange(0, BV)
    p_layer = p_states + i_layer * layer_stride + i_head * D * D + i_column
    o_state = o_dim[:, None] * D + o_column[None, :]
    p_snapshot = p_layer + snapshot_slot.to(tl.int64) * slot_stride + o_state
    p_state = p_layer + slot.to(tl.int64) * slot_stride + o_state
    b_state = tl.load(p_state)
    log_decay = tl.load(p_log_decay + i_head)
    if (snapshot_slot >= 0) & (snapshot_row == 0):
        tl.store(p_snapshot, b_state)
    p_row = p_stash + i_layer * stash_stride + (i_request * ROWS * 2 * heads + i_head).to(tl.int64) * D
    for i in range(rows):
        b_k = tl.load(p_row + o_dim).to(tl.float32)
        b_v = tl.load(p_row + heads * D + i_column + o_column).to(tl.float32)
        b_state = next_state(b_state, b_k, b_v, log_decay)
        if (snapshot_slot >= 0) & (snapshot_row == i + 1):
            tl.store(p_snapshot, b_state)
        p_row += 2 * heads * D
    if rows > 0:
        tl.store(p_state, b_state)
