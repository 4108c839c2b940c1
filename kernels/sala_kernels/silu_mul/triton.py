"""silu_mul on a GPU: one program per row."""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.float8_rows import Float8Rows, empty_float8_rows, store_float8_row
from sala_kernels.kernel_arguments import with_strides
from sala_kernels.row_wise import load_row, row_warps


def silu_mul(gate_up: torch.Tensor) -> Float8Rows:
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    output = empty_float8_rows(tokens, width, gate_up.device)
    block = triton.next_power_of_2(width)
    _silu_mul_kernel[(tokens,)](
        with_strides(gate_up),
        *output,
        width,
        BLOCK=block,
        **dependent_launch(gate_up.device),
        num_warps=row_warps(block),
    )
    return output


@triton.jit
def _silu_mul_kernel(gate_up, p_codes, p_scales, width, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    wait_for_predecessor(DEPENDENT)
    i_row = tl.program_id(0).to(tl.int64)
    o_column = tl.arange(0, BLOCK)
    m_column = o_column < width
    b_gate, b_up = load_row(gate_up, i_row, o_column, m_column), load_row(gate_up, i_row, width + o_column, m_column)
    b_wide = b_gate.to(tl.float32)
    b_output = (b_wide * tl.sigmoid(b_wide) * b_up.to(tl.float32)).to(b_gate.dtype).to(tl.float32)
    store_float8_row(p_codes, p_scales, i_row, width, o_column, m_column, b_output)
