"""gated_norm on a GPU: one program per row."""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.float8_rows import Float8Rows, empty_float8_rows, store_float8_row
from sala_kernels.kernel_arguments import with_strides
from sala_kernels.row_wise import load_row, row_warps


def gated_norm(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    mean_square: torch.Tensor | None,
    to_float8: bool,
) -> torch.Tensor | Float8Rows:
    tokens, width = x.shape
    output = empty_float8_rows(tokens, width, x.device) if to_float8 else x.new_empty(x.shape)
    outputs = output if isinstance(output, Float8Rows) else (output, output)  # scales would be the second
    block = triton.next_power_of_2(width)
    _gated_norm_kernel[(tokens,)](
        with_strides(x),
        with_strides(gate),
        weight.contiguous(),
        x if mean_square is None else mean_square.contiguous(),
        *outputs,
        eps,
        width,
        GIVEN_MEAN_SQUARE=mean_square is not None,
        TO_FLOAT8=to_float8,
        BLOCK=block,
        **dependent_launch(x.device),
        num_warps=row_warps(block),
    )
    return output


def mean_square_part(x: torch.Tensor, full_width: int, rows: int) -> torch.Tensor:
    tokens, width = x.shape
    output = torch.empty(rows, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(width)
    _mean_square_part_kernel[(rows,)](
        with_strides(x), output, full_width, tokens, width, BLOCK=block, num_warps=row_warps(block)
    )
    return output


@triton.jit
def _gated_norm_kernel(
    x,
    gate,
    p_weight,
    p_mean_square,
    p_output,
    p_scales,
    eps,
    width,
    GIVEN_MEAN_SQUARE: tl.constexpr,
    TO_FLOAT8: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_predecessor(DEPENDENT)
    i_row = tl.program_id(0).to(tl.int64)
    o_column = tl.arange(0, BLOCK)
    m_column = o_column < width
    b_x = load_row(x, i_row, o_column, m_column).to(tl.float32)
    b_gate = load_row(gate, i_row, o_column, m_column)
    dtype = b_gate.dtype
    b_weight = tl.load(p_weight + o_column, mask=m_column, other=0.0).to(tl.float32)
    mean_square = tl.load(p_mean_square + i_row) if GIVEN_MEAN_SQUARE else tl.sum(b_x * b_x, axis=0) / width
    b_normed = (b_x * tl.rsqrt(mean_square + eps)).to(dtype).to(tl.float32)
    b_normed = (b_normed * b_weight).to(dtype).to(tl.float32)
    b_sigmoid = tl.sigmoid(b_gate.to(tl.float32)).to(dtype).to(tl.float32)
    b_output = (b_normed * b_sigmoid).to(dtype)
    if TO_FLOAT8:
        store_float8_row(p_output, p_scales, i_row, width, o_column, m_column, b_output.to(tl.float32))
    else:
        tl.store(p_output + i_row * width + o_column, b_output, mask=m_column)


@triton.jit(do_not_specialize=["tokens"])
def _mean_square_part_kernel(x, p_output, full_width, tokens, width, BLOCK: tl.constexpr):
    i_row = tl.program_id(0).to(tl.int64)
    o_column = tl.arange(0, BLOCK)
    m_column = (o_column < width) & (i_row < tokens)
    b_x = load_row(x, i_row, o_column, m_column).to(tl.float32)
    tl.store(p_output + i_row, tl.sum(b_x * b_x, axis=0) / full_width)
