"""lightning_step on a GPU: one launch, a program per request, head and slice of the value dimension.

The state is nearly all of the traffic. While its slice of it is on the way, every program normalises and rotates q and
k of its head by itself: the few programs of a head repeat that work, and nothing is exchanged between them.

Several rows per request, of which not all may stay, are lightning_verify's.
"""

import torch
import triton
import triton.language as tl

from sala_kernels.contract import check_dtypes
from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.lightning_step import Arguments
from sala_kernels.lightning_step.common import load_pairs, next_state, norm_rope

VALUE_COLUMNS = 32  # per program, a cache line of each row of the state; 32 heads of 128 are 128 programs per request


def lightning_step(arguments: Arguments) -> torch.Tensor:
    q, k, v, q_weight, k_weight, positions, inv_freq, eps, states, state_slots, snapshot_slots, log_decay, scale = (
        arguments
    )
    check_dtypes(torch.float32, states=states)
    requests, heads, dim = q.shape
    columns = min(dim, VALUE_COLUMNS)
    output = q.new_empty(q.shape)
    _step_kernel[(dim // columns, heads, requests)](
        (q, q.stride(0)),
        (k, k.stride(0)),
        (v, v.stride(0)),
        output,
        (q_weight.contiguous(), k_weight.contiguous(), positions.contiguous(), inv_freq.contiguous(), eps),
        (states, states.stride(0)),
        state_slots.contiguous(),
        snapshot_slots.contiguous(),
        log_decay.contiguous(),
        scale,
        D=dim,
        BV=columns,
        **dependent_launch(q.device),
        num_warps=4,
    )
    return output


@triton.jit
def _step_kernel(
    q,
    k,
    v,
    p_output,
    norm_and_rotation,
    states,
    p_state_slots,
    p_snapshot_slots,
    p_log_decay,
    scale,
    D: tl.constexpr,
    BV: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_predecessor(DEPENDENT)
    p_q, q_stride = q
    p_k, k_stride = k
    p_v, v_stride = v
    p_states, slot_stride = states
    p_q_weight, p_k_weight, p_positions, p_inv_freq, eps = norm_and_rotation
    i_head, i_request = tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_column = tl.program_id(0) * BV
    o_dim, o_column = tl.arange(0, D), tl.arange(0, BV)
    # All loads come first, so that their latencies overlap.
    slot = tl.load(p_state_slots + i_request)
    snapshot_slot = tl.load(p_snapshot_slots + i_request)
    log_decay = tl.load(p_log_decay + i_head)
    position = tl.load(p_positions + i_request)
    b_inv_freq = tl.load(p_inv_freq + o_dim % (D // 2))
    q_pairs = load_pairs(p_q + i_request * q_stride + i_head * D, D)
    k_pairs = load_pairs(p_k + i_request * k_stride + i_head * D, D)
    q_weights, k_weights = load_pairs(p_q_weight, D), load_pairs(p_k_weight, D)
    b_v = tl.load(p_v + i_request * v_stride + i_head * D + i_column + o_column)
    p_output += (i_request * tl.num_programs(1) + i_head) * D + i_column

    if slot < 0:
        tl.store(p_output + o_column, tl.zeros([BV], dtype=p_output.dtype.element_ty))
    else:
        i_state = i_head * D * D + i_column
        o_state = o_dim[:, None] * D + o_column[None, :]
        p_state = p_states + slot.to(tl.int64) * slot_stride + i_state
        b_state = tl.load(p_state + o_state)

        # Positions reach a million and more radians: on CUDA tl.cos and tl.sin are libdevice's, which reduce exactly.
        angle = position.to(tl.float32) * b_inv_freq
        b_cos, b_sin = tl.cos(angle), tl.sin(angle)
        b_q = norm_rope(q_pairs, q_weights, b_cos, b_sin, eps, D)
        b_k = norm_rope(k_pairs, k_weights, b_cos, b_sin, eps, D)

        b_state = next_state(b_state, b_k, b_v.to(tl.float32), log_decay)
        b_output = tl.sum(b_q[:, None] * b_state, axis=0) * scale
        tl.store(p_output + o_column, b_output.to(p_output.dtype.element_ty))
        tl.store(p_state + o_state, b_state)
        if snapshot_slot >= 0:
            tl.store(p_states + snapshot_slot.to(tl.int64) * slot_stride + i_state + o_state, b_state)
