"""scaled_add_norm on a GPU: one program per row."""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor


def scaled_add_norm(
    x: torch.Tensor, residual: torch.Tensor, scale: float, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, width = x.shape
    normed, hidden = x.new_empty(x.shape), x.new_empty(x.shape)
    block = triton.next_power_of_2(width)
    _scaled_add_norm_kernel[(tokens,)](
        x,
        residual,
        weight.contiguous(),
        normed,
        hidden,
        scale,
        eps,
        width,
        *x.stride(),
        *residual.stride(),
        BLOCK=block,
        **dependent_launch(x.device),
        num_warps=min(max(block // 512, 1), 16),
    )
    return normed, hidden


@triton.jit
def _scaled_add_norm_kernel(
    p_x,
    p_residual,
    p_weight,
    p_normed,
    p_hidden,
    scale,
    eps,
    width,
    x_stride,
    x_column_stride,
    residual_stride,
    residual_column_stride,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_predecessor(DEPENDENT)
    i_row = tl.program_id(0).to(tl.int64)
    o_column = tl.arange(0, BLOCK)
    m_column = o_column < width
    o_output = i_row * width + o_column
    dtype = p_normed.dtype.element_ty
    b_x = tl.load(p_x + i_row * x_stride + o_column * x_column_stride, mask=m_column, other=0.0)
    p_row = p_residual + i_row * residual_stride + o_column * residual_column_stride
    b_residual = tl.load(p_row, mask=m_column, other=0.0).to(tl.float32)
    b_weight = tl.load(p_weight + o_column, mask=m_column, other=0.0).to(tl.float32)

    b_scaled = (b_x.to(tl.float32) * scale).to(dtype).to(tl.float32)
    b_hidden = (b_residual + b_scaled).to(dtype)
    tl.store(p_hidden + o_output, b_hidden, mask=m_column)

    b_wide = b_hidden.to(tl.float32)
    mean_square = tl.sum(b_wide * b_wide, axis=0) / width
    b_normed = (b_wide * tl.rsqrt(mean_square + eps)).to(dtype).to(tl.float32)
    tl.store(p_normed + o_output, (b_normed * b_weight).to(dtype), mask=m_column)
