"""scaled_add_norm on a GPU: one program per row."""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.float8_rows import Float8Rows, empty_float8_rows, store_float8_row
from sala_kernels.kernel_arguments import with_strides
from sala_kernels.row_wise import load_row, row_warps


def scaled_add_norm(
    x: torch.Tensor, residual: torch.Tensor, scale: float, weight: torch.Tensor, eps: float, to_float8: bool
) -> tuple[torch.Tensor | Float8Rows, torch.Tensor]:
    tokens, width = x.shape
    normed = empty_float8_rows(tokens, width, x.device) if to_float8 else x.new_empty(x.shape)
    hidden = x.new_empty(x.shape)
    outputs = normed if isinstance(normed, Float8Rows) else (normed, hidden)  # scales would be the second
    block = triton.next_power_of_2(width)
    _scaled_add_norm_kernel[(tokens,)](
        with_strides(x),
        with_strides(residual),
        weight.contiguous(),
        *outputs,
        hidden,
        scale,
        eps,
        width,
        TO_FLOAT8=to_float8,
        BLOCK=block,
        **dependent_launch(x.device),
        num_warps=row_warps(block),
    )
    return normed, hidden


@triton.jit
def _scaled_add_norm_kernel(
    x,
    residual,
    p_weight,
    p_normed,
    p_scales,
    p_hidden,
    scale,
    eps,
    width,
    TO_FLOAT8: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_predecessor(DEPENDENT)
    i_row = tl.program_id(0).to(tl.int64)
    o_column = tl.arange(0, BLOCK)
    m_column = o_column < width
    o_output = i_row * width + o_column
    dtype = p_hidden.dtype.element_ty
    b_x = load_row(x, i_row, o_column, m_column)
    b_residual = load_row(residual, i_row, o_column, m_column).to(tl.float32)
    b_weight = tl.load(p_weight + o_column, mask=m_column, other=0.0).to(tl.float32)

    b_scaled = (b_x.to(tl.float32) * scale).to(dtype).to(tl.float32)
    b_hidden = (b_residual + b_scaled).to(dtype)
    tl.store(p_hidden + o_output, b_hidden, mask=m_column)

    b_wide = b_hidden.to(tl.float32)
    mean_square = tl.sum(b_wide * b_wide, axis=0) / width
    b_normed = (b_wide * tl.rsqrt(mean_square + eps)).to(dtype).to(tl.float32)
    b_output = (b_normed * b_weight).to(dtype)
    if TO_FLOAT8:
        store_float8_row(p_normed, p_scales, i_row, width, o_column, m_column, b_output.to(tl.float32))
    else:
        tl.store(p_normed + o_output, b_output, mask=m_column)
