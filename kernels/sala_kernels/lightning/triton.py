"""Lightning attention on a GPU: each program owns one head and a slice of the value dimension.

The columns of the state are independent of each other, so a program keeps its slice [D, BV] in registers
and nothing is exchanged between programs.
"""

import torch
import triton
import triton.language as tl

from sala_kernels.contract import check_dtypes
from sala_kernels.lightning import CHUNK_TOKENS
from sala_kernels.lightning.common import dot_float32, product_precision

VALUE_COLUMNS = 32  # columns per program: 32 heads of 128 give one request 128 programs


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
) -> torch.Tensor:
    check_dtypes(torch.float32, states=states)
    tokens, heads, dim = q.shape
    columns = min(dim, VALUE_COLUMNS)
    output = q.new_empty(q.shape)
    # One program more than requests in the last dimension, for the rows behind the last request.
    _chunk_kernel[(heads, dim // columns, state_slots.shape[0] + 1)](
        q,
        k,
        v,
        output,
        states,
        state_slots.contiguous(),
        query_start.contiguous(),
        snapshot_slots.contiguous(),
        snapshot_tokens.contiguous(),
        log_decay.contiguous(),
        scale,
        state_slots.shape[0],
        tokens,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        states.stride(0),
        D=dim,
        BV=columns,
        CHUNK=CHUNK_TOKENS,
        PRECISION=product_precision(q),
        num_warps=8 if dim * q.element_size() >= 256 else 4,
        num_stages=2,
    )
    return output


def lightning_recurrent(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    states: torch.Tensor,
    state_slots: torch.Tensor,
    snapshot_slots: torch.Tensor,
    log_decay: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    check_dtypes(torch.float32, states=states)
    requests, heads, dim = q.shape
    columns = min(dim, VALUE_COLUMNS)
    output = q.new_empty(q.shape)
    _recurrent_kernel[(requests, heads, dim // columns)](
        q,
        k,
        v,
        output,
        states,
        state_slots.contiguous(),
        snapshot_slots.contiguous(),
        log_decay.contiguous(),
        scale,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        states.stride(0),
        D=dim,
        BV=columns,
        num_warps=4,
    )
    return output


@triton.jit
def _chunk_kernel(
    p_q,
    p_k,
    p_v,
    p_output,
    p_states,
    p_state_slots,
    p_query_start,
    p_snapshot_slots,
    p_snapshot_tokens,
    p_log_decay,
    scale,
    requests,
    tokens,
    q_stride,
    k_stride,
    v_stride,
    slot_stride,
    D: tl.constexpr,
    BV: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_head, i_request = tl.program_id(0), tl.program_id(2)
    o_dim = tl.arange(0, D)
    o_column = tl.program_id(1) * BV + tl.arange(0, BV)
    o_row = tl.arange(0, CHUNK)
    # Rows behind the last request are those of a request without a state.
    m_request = i_request < requests
    slot = tl.load(p_state_slots + i_request, mask=m_request, other=-1)
    snapshot_slot = tl.load(p_snapshot_slots + i_request, mask=m_request, other=-1)
    snapshot_tokens = tl.load(p_snapshot_tokens + i_request, mask=m_request, other=0)
    start = tl.load(p_query_start + i_request)
    end = tl.load(p_query_start + i_request + 1, mask=m_request, other=tokens)
    output_stride = tl.num_programs(0) * D
    p_output += i_head * D + o_column[None, :]
    p_q += i_head * D + o_dim[None, :]
    p_k += i_head * D + o_dim[None, :]
    p_v += i_head * D + o_column[None, :]

    if slot < 0:
        b_zero = tl.zeros([CHUNK, BV], dtype=p_output.dtype.element_ty)
        for begin in range(start, end, CHUNK):
            o_token = begin + o_row
            tl.store(p_output + o_token.to(tl.int64)[:, None] * output_stride, b_zero, mask=o_token[:, None] < end)
    else:
        o_state = i_head * D * D + o_dim[:, None] * D + o_column[None, :]
        p_state = p_states + slot.to(tl.int64) * slot_stride + o_state
        p_snapshot = p_states + snapshot_slot.to(tl.int64) * slot_stride + o_state

        log_decay = tl.load(p_log_decay + i_head)
        # λ^(i−j) from the difference: λ^i·λ^(−j) would overflow for the fastest heads.
        distance = o_row[:, None] - o_row[None, :]
        b_mask = tl.where(distance >= 0, tl.exp(log_decay * tl.maximum(distance, 0)), 0.0)
        b_since_start = tl.exp(log_decay * (o_row + 1))
        b_state = tl.load(p_state)
        if (snapshot_slot >= 0) & (snapshot_tokens == 0):
            tl.store(p_snapshot, b_state)

        for begin in range(start, end, CHUNK):
            rows = tl.minimum(end - begin, CHUNK)
            m_row = o_row[:, None] < rows
            o_token = (begin + o_row).to(tl.int64)[:, None]
            b_q = tl.load(p_q + o_token * q_stride, mask=m_row, other=0.0)
            b_k = tl.load(p_k + o_token * k_stride, mask=m_row, other=0.0)
            b_v = tl.load(p_v + o_token * v_stride, mask=m_row, other=0.0)

            b_scores = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * b_mask
            b_output = dot_float32(b_q, b_state, PRECISION) * b_since_start[:, None]
            b_output += dot_float32(b_scores, b_v, PRECISION)
            b_output = (b_output * scale).to(p_output.dtype.element_ty)
            tl.store(p_output + o_token * output_stride, b_output, mask=m_row)

            # Rows past the last of a partial chunk loaded zeros; the clamp keeps their factor finite.
            b_until_end = tl.exp(log_decay * tl.maximum(rows - 1 - o_row, 0))
            b_update = dot_float32(tl.trans(b_k), b_v.to(tl.float32) * b_until_end[:, None], PRECISION)
            b_state = tl.exp(log_decay * rows) * b_state + b_update
            if (snapshot_slot >= 0) & (begin + rows - start == snapshot_tokens):
                tl.store(p_snapshot, b_state)
        tl.store(p_state, b_state)


@triton.jit
def _recurrent_kernel(
    p_q,
    p_k,
    p_v,
    p_output,
    p_states,
    p_state_slots,
    p_snapshot_slots,
    p_log_decay,
    scale,
    q_stride,
    k_stride,
    v_stride,
    slot_stride,
    D: tl.constexpr,
    BV: tl.constexpr,
):
    i_request, i_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_dim = tl.arange(0, D)
    o_column = tl.program_id(2) * BV + tl.arange(0, BV)
    slot = tl.load(p_state_slots + i_request)
    p_output += (i_request * tl.num_programs(1) + i_head) * D + o_column

    if slot < 0:
        tl.store(p_output, tl.zeros([BV], dtype=p_output.dtype.element_ty))
    else:
        o_state = i_head * D * D + o_dim[:, None] * D + o_column[None, :]
        p_state = p_states + slot.to(tl.int64) * slot_stride + o_state
        b_q = tl.load(p_q + i_request * q_stride + i_head * D + o_dim).to(tl.float32)
        b_k = tl.load(p_k + i_request * k_stride + i_head * D + o_dim).to(tl.float32)
        b_v = tl.load(p_v + i_request * v_stride + i_head * D + o_column).to(tl.float32)
        decay = tl.exp(tl.load(p_log_decay + i_head))

        b_state = decay * tl.load(p_state) + b_k[:, None] * b_v[None, :]
        b_output = tl.sum(b_q[:, None] * b_state, axis=0) * scale
        tl.store(p_output, b_output.to(p_output.dtype.element_ty))
        tl.store(p_state, b_state)
        snapshot_slot = tl.load(p_snapshot_slots + i_request)
        if snapshot_slot >= 0:
            tl.store(p_states + snapshot_slot.to(tl.int64) * slot_stride + o_state, b_state)
