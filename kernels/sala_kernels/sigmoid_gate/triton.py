"""sigmoid_gate on a GPU: a program per row and block of columns, and one per row where a scale needs all of it."""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.float8_rows import Float8Rows, empty_float8_rows, store_float8_row
from sala_kernels.kernel_arguments import with_strides
from sala_kernels.row_wise import load_row, row_warps

COLUMNS = 1024  # per program, 16 bytes of bfloat16 for each of its threads


def sigmoid_gate(x: torch.Tensor, gate: torch.Tensor, to_float8: bool) -> torch.Tensor | Float8Rows:
    tokens, width = x.shape
    if to_float8:
        return _to_float8(x, gate)
    output = x.new_empty(x.shape)
    _sigmoid_gate_kernel[(triton.cdiv(width, COLUMNS), tokens)](
        with_strides(x),
        with_strides(gate),
        output,
        width,
        BLOCK=COLUMNS,
        num_warps=4,
        **dependent_launch(x.device),
    )
    return output


def _to_float8(x: torch.Tensor, gate: torch.Tensor) -> Float8Rows:
    tokens, width = x.shape
    output, block = empty_float8_rows(tokens, width, x.device), triton.next_power_of_2(width)
    _float8_gate_kernel[(tokens,)](
        with_strides(x),
        with_strides(gate),
        *output,
        width,
        BLOCK=block,
        num_warps=row_warps(block),
        **dependent_launch(x.device),
    )
    return output


@triton.jit
def _float8_gate_kernel(x, gate, p_codes, p_scales, width, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    wait_for_predecessor(DEPENDENT)
    i_row, o_column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    m_column = o_column < width
    b_output = _gated(x, gate, i_row, o_column, m_column).to(tl.float32)
    store_float8_row(p_codes, p_scales, i_row, width, o_column, m_column, b_output)


@triton.jit
def _sigmoid_gate_kernel(x, gate, p_output, width, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    wait_for_predecessor(DEPENDENT)
    i_row = tl.program_id(1).to(tl.int64)
    o_column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_column = o_column < width
    b_output = _gated(x, gate, i_row, o_column, m_column)
    tl.store(p_output + i_row * width + o_column, b_output, mask=m_column)


@triton.jit
def _gated(x, gate, i_row, o_column, m_column):
    b_x, b_gate = load_row(x, i_row, o_column, m_column), load_row(gate, i_row, o_column, m_column)
    b_sigmoid = tl.sigmoid(b_gate.to(tl.float32)).to(b_gate.dtype).to(tl.float32)
    return (b_x.to(tl.float32) * b_sigmoid).to(b_x.dtype)
