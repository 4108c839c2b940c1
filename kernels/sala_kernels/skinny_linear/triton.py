"""skinny_linear on a GPU: every program reads the weights of some outputs once, from end to end.

It has its first tile of weights before it waits for the kernel that computes its rows.
"""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.quantised_weights import Float8Weight, Int4Weight, Weight
from sala_kernels.row_tiles import MIN_DOT_ROWS
from sala_kernels.skinny_linear.few_rows import FEW_ROWS, few_rows
from sala_kernels.skinny_linear.int4 import int4_rows

ROW_OUTPUTS, ROW_INPUTS = 2, 2048  # tile of weights that meets a single row
OUTPUTS, INPUTS = 128, 128  # tile of weights that meets several rows, and a block of scales
WIDE_OUTPUTS = 16384  # from here on these tiles are enough to fill a GPU


def skinny_linear(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    rows = x.shape[0]
    if not isinstance(weight, torch.Tensor) and x.element_size() != 2:
        raise TypeError(f"x: expected a dtype of 16 bits beside a quantised weight, got {x.dtype}")
    if not rows:
        outputs = weight.shape[0] if isinstance(weight, torch.Tensor) else weight.outputs
        return x.new_empty((0, outputs))
    if isinstance(weight, Int4Weight):
        return int4_rows(x, weight)
    codes, scales = weight if isinstance(weight, Float8Weight) else (weight, None)
    if rows == 1 and scales is None:
        return _single_row(x, codes)
    narrow = codes.shape[0] < WIDE_OUTPUTS or scales is not None
    if rows <= FEW_ROWS and narrow and x.element_size() == 2:
        return few_rows(x, codes, scales)
    return _tiles(x, codes, scales)


def _single_row(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    inputs, outputs = x.shape[1], weight.shape[0]
    output = x.new_empty((1, outputs))
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
    return output


def _tiles(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    (rows, inputs), outputs = x.shape, codes.shape[0]
    output = x.new_empty((rows, outputs))
    _skinny_tile_kernel[(triton.cdiv(outputs, OUTPUTS),)](
        x,
        codes,
        output if scales is None else scales,
        output,
        rows,
        outputs,
        inputs,
        x.stride(0),
        codes.stride(0),
        0 if scales is None else scales.stride(0),
        SCALES=0 if scales is None else scales.ndim,
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
    p_scales,
    p_output,
    rows,
    outputs,
    inputs,
    x_stride,
    weight_stride,
    scales_stride,
    SCALES: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """At most ROWS rows: x [T, K], weight [N, K] -> [T, N]. SCALES: dimensions of the weight's; 0 for none."""
    o_output, o_input = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, INPUTS)
    o_row = tl.arange(0, ROWS)
    p_tile = _tile(p_weight, o_output, o_input, outputs, weight_stride)
    p_rows = p_x + o_row[:, None] * x_stride + o_input[None, :]
    p_blocks = p_scales + tl.program_id(0) * scales_stride
    m_row = o_row < rows

    m_input = (o_input < inputs)[None, :]
    b_weight = tl.load(p_tile, mask=m_input, other=0.0, eviction_policy="evict_first")
    wait_for_predecessor(DEPENDENT)
    b_x = tl.load(p_rows, mask=m_row[:, None] & m_input, other=0.0)
    b_output = _product(b_weight, b_x, p_blocks, SCALES)
    for i_input in range(INPUTS, inputs, INPUTS):
        m_input = (i_input + o_input < inputs)[None, :]
        b_weight = tl.load(p_tile + i_input, mask=m_input, other=0.0, eviction_policy="evict_first")
        b_x = tl.load(p_rows + i_input, mask=m_row[:, None] & m_input, other=0.0)
        if SCALES == 2:
            b_output += _product(b_weight, b_x, p_blocks + i_input // INPUTS, SCALES)
        elif SCALES == 1:
            b_output = tl.dot(_widened(b_weight, b_x), tl.trans(b_x), b_output)
        else:
            b_output = tl.dot(b_weight, tl.trans(b_x), b_output, input_precision="ieee")
    m_output = o_output < outputs
    if SCALES == 1:
        b_output *= tl.load(p_scales + o_output * scales_stride, mask=m_output, other=0.0)[:, None]
    p_out = p_output + o_row[None, :].to(tl.int64) * outputs + o_output[:, None]
    tl.store(p_out, b_output.to(p_output.dtype.element_ty), mask=m_row[None, :] & m_output[:, None])


@triton.jit
def _product(b_weight, b_x, p_block, SCALES: tl.constexpr):
    """Of a tile, times the scale of its block where it has one."""
    if SCALES > 0:
        b_product = tl.dot(_widened(b_weight, b_x), tl.trans(b_x))
    else:
        b_product = tl.dot(b_weight, tl.trans(b_x), input_precision="ieee")
    if SCALES == 2:
        b_product *= tl.load(p_block)
    return b_product


@triton.jit
def _widened(b_codes, b_x):
    """Codes in the dtype of x, by way of float32, to which float16 is widened faster than to bfloat16."""
    return b_codes.to(tl.float32).to(b_x.dtype)


@triton.jit
def _tile(p_weight, o_output, o_input, outputs, weight_stride):
    """Pointers to the first tile of the weights; outputs of the padding repeat the last one."""
    return p_weight + tl.minimum(o_output, outputs - 1).to(tl.int64)[:, None] * weight_stride + o_input[None, :]
