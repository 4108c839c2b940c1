"""skinny_linear on a GPU: every program reads the weights of some outputs once, from end to end.

It has its first tile of weights before it waits for the kernel that computes its rows.
"""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.row_tiles import MIN_DOT_ROWS

ROW_OUTPUTS, ROW_INPUTS = 2, 2048  # tile of weights that meets a single row
OUTPUTS, INPUTS = 128, 128  # tile of weights that meets several rows


def skinny_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    (rows, inputs), outputs = x.shape, weight.shape[0]
    output = x.new_empty((rows, outputs))
    if rows == 1:
        _skinny_row_kernel[(triton.cdiv(outputs, ROW_OUTPUTS),)](
            x,
            weight,
            output,
            outputs,
            inputs,
            weight.stride(0),
            OUTPUTS=ROW_OUTPUTS,
            INPUTS=ROW_INPUTS,
            **dependent_launch(x.device),
            num_warps=8,
        )
    elif rows:
        _skinny_tile_kernel[(triton.cdiv(outputs, OUTPUTS),)](
            x,
            weight,
            output,
            rows,
            outputs,
            inputs,
            x.stride(0),
            weight.stride(0),
            ROWS=max(MIN_DOT_ROWS, triton.next_power_of_2(rows)),
            OUTPUTS=OUTPUTS,
            INPUTS=INPUTS,
            **dependent_launch(x.device),
            num_warps=8,
            num_stages=3 if x.element_size() == 2 else 2,
        )
    return output


@triton.jit
def _skinny_row_kernel(
    p_x,
    p_weight,
    p_output,
    outputs,
    inputs,
    weight_stride,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """One row, without tensor cores: x [1, K], weight [N, K] -> [1, N]."""
    o_output, o_input = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, INPUTS)
    p_tile = _tile(p_weight, o_output, o_input, outputs, weight_stride)
    b_weight = tl.load(p_tile, mask=(o_input < inputs)[None, :], other=0.0, eviction_policy="evict_first")
    wait_for_predecessor(DEPENDENT)
    b_sums = tl.zeros([OUTPUTS, INPUTS], tl.float32)
    for i_input in range(0, inputs, INPUTS):
        b_x = tl.load(p_x + i_input + o_input, mask=i_input + o_input < inputs, other=0.0).to(tl.float32)
        b_now, i_next = b_weight.to(tl.float32), i_input + INPUTS
        m_next = (i_next + o_input < inputs)[None, :]
        b_weight = tl.load(p_tile + i_next, mask=m_next, other=0.0, eviction_policy="evict_first")
        b_sums += b_now * b_x[None, :]
    b_output = tl.sum(b_sums, 1).to(p_output.dtype.element_ty)
    tl.store(p_output + o_output, b_output, mask=o_output < outputs)


@triton.jit(do_not_specialize=["rows"])
def _skinny_tile_kernel(
    p_x,
    p_weight,
    p_output,
    rows,
    outputs,
    inputs,
    x_stride,
    weight_stride,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """At most ROWS rows: x [T, K], weight [N, K] -> [T, N]."""
    o_output, o_input = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, INPUTS)
    o_row = tl.arange(0, ROWS)
    p_tile = _tile(p_weight, o_output, o_input, outputs, weight_stride)
    p_rows = p_x + o_row[:, None] * x_stride + o_input[None, :]
    m_row = o_row < rows

    m_input = (o_input < inputs)[None, :]
    b_weight = tl.load(p_tile, mask=m_input, other=0.0, eviction_policy="evict_first")
    wait_for_predecessor(DEPENDENT)
    b_x = tl.load(p_rows, mask=m_row[:, None] & m_input, other=0.0)
    b_output = tl.dot(b_weight, tl.trans(b_x), input_precision="ieee")
    for i_input in range(INPUTS, inputs, INPUTS):
        m_input = (i_input + o_input < inputs)[None, :]
        b_weight = tl.load(p_tile + i_input, mask=m_input, other=0.0, eviction_policy="evict_first")
        b_x = tl.load(p_rows + i_input, mask=m_row[:, None] & m_input, other=0.0)
        b_output = tl.dot(b_weight, tl.trans(b_x), b_output, input_precision="ieee")
    p_out = p_output + o_row[None, :].to(tl.int64) * outputs + o_output[:, None]
    tl.store(p_out, b_output.to(p_output.dtype.element_ty), mask=m_row[None, :] & (o_output < outputs)[:, None])


@triton.jit
def _tile(p_weight, o_output, o_input, outputs, weight_stride):
    """Pointers to the first tile of the weights; outputs of the padding repeat the last one."""
    return p_weight + tl.minimum(o_output, outputs - 1).to(tl.int64)[:, None] * weight_stride + o_input[None, :]
