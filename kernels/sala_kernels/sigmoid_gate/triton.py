"""sigmoid_gate on a GPU: a program per row and block of columns."""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.kernel_arguments import with_strides
from sala_kernels.row_wise import load_row

COLUMNS = 1024  # per program, 16 bytes of bfloat16 for each of its threads


def sigmoid_gate(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    tokens, width = x.shape
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


@triton.jit
def _sigmoid_gate_kernel(x, gate, p_output, width, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    wait_for_predecessor(DEPENDENT)
    i_row = tl.program_id(1).to(tl.int64)
    o_column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_column = o_column < width
    b_x, b_gate = load_row(x, i_row, o_column, m_column), load_row(gate, i_row, o_column, m_column)
    b_sigmoid = tl.sigmoid(b_gate.to(tl.float32)).to(b_gate.dtype).to(tl.float32)
    b_output = (b_x.to(tl.float32) * b_sigmoid).to(b_x.dtype)
    tl.store(p_output + i_row * width + o_column, b_output, mask=m_column)
