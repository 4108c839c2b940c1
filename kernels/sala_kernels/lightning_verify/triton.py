"""lightning_verify on a GPU: one launch, a program per request, head and slice of the value dimension.

As lightning_step, with a loop over the rows of a request around what follows the load of the state: the slice stays in
registers from row to row, and is not written back.
"""

import torch
import triton
import triton.language as tl

from sala_kernels.contract import check_dtypes
from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.lightning_step.common import load_pairs, next_state, norm_rope
from sala_kernels.lightning_verify import Arguments

VALUE_COLUMNS = 32  # per program, as in lightning_step


def lightning_verify(arguments: Arguments) -> torch.Tensor:
    q, k, v, q_weight, k_weight, positions, inv_freq, eps, states, state_slots, stash, log_decay, scale = arguments
    check_dtypes(torch.float32, states=states)
    tokens, heads, dim = q.shape
    columns = min(dim, VALUE_COLUMNS)
    output = q.new_empty(q.shape)
    requests = len(state_slots)
    _verify_kernel[(dim // columns, heads, requests)](
        (q, q.stride(0)),
        (k, k.stride(0)),
        (v, v.stride(0)),
        output,
        (q_weight.contiguous(), k_weight.contiguous(), positions.contiguous(), inv_freq.contiguous(), eps),
        (states, states.stride(0)),
        state_slots.contiguous(),
        stash,
        log_decay.contiguous(),
        scale,
        ROWS=tokens // max(requests, 1),
        D=dim,
        BV=columns,
        **dependent_launch(q.device),
        num_warps=4,
    )
    return output


@triton.jit
def _verify_kernel(
    q,
    k,
    v,
    p_output,
    norm_and_rotation,
    states,
    p_state_slots,
    p_stash,
    p_log_decay,
    scale,
    ROWS: tl.constexpr,
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
    heads = tl.num_programs(1)
    i_column = tl.program_id(0) * BV
    o_dim, o_column = tl.arange(0, D), tl.arange(0, BV)
    slot = tl.load(p_state_slots + i_request)
    log_decay = tl.load(p_log_decay + i_head)
    b_inv_freq = tl.load(p_inv_freq + o_dim % (D // 2))
    q_weights, k_weights = load_pairs(p_q_weight, D), load_pairs(p_k_weight, D)

    if slot < 0:
        for i in tl.static_range(ROWS):
            p_row = p_output + ((i_request * ROWS + i) * heads + i_head) * D + i_column
            tl.store(p_row + o_column, tl.zeros([BV], dtype=p_output.dtype.element_ty))
    else:
        o_state = o_dim[:, None] * D + o_column[None, :]
        b_state = tl.load(p_states + slot.to(tl.int64) * slot_stride + i_head * D * D + i_column + o_state)
        for i in tl.static_range(ROWS):  # unrolled: the loads of a row do not wait for the row before it
            i_row = i_request * ROWS + i
            q_pairs = load_pairs(p_q + i_row * q_stride + i_head * D, D)
            k_pairs = load_pairs(p_k + i_row * k_stride + i_head * D, D)
            b_v = tl.load(p_v + i_row * v_stride + i_head * D + i_column + o_column)
            angle = tl.load(p_positions + i_row).to(tl.float32) * b_inv_freq
            b_cos, b_sin = tl.cos(angle), tl.sin(angle)
            b_q = norm_rope(q_pairs, q_weights, b_cos, b_sin, eps, D)
            b_k = norm_rope(k_pairs, k_weights, b_cos, b_sin, eps, D)
            b_state = next_state(b_state, b_k, b_v.to(tl.float32), log_decay)
            b_output = tl.sum(b_q[:, None] * b_state, axis=0) * scale
            tl.store(
                p_output + (i_row * heads + i_head) * D + i_column + o_column,
                b_output.to(p_output.dtype.element_ty),
            )
            # Every program of a head has all of k; each keeps its share.
            p_kept = p_stash + (i_row * 2 * heads + i_head) * D
            is_mine = o_dim // BV == tl.program_id(0)
            tl.store(p_kept + o_dim, b_k.to(p_stash.dtype.element_ty), mask=is_mine)
            tl.store(p_kept + heads * D + i_column + o_column, b_v)
