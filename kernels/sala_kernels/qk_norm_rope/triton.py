"""qk_norm_rope on a GPU: one launch for both tensors, a program per token and group of heads."""

import torch
import triton
import triton.language as tl

from sala_kernels.qk_norm_rope.common import round_and_weigh

HEADS_PER_PROGRAM = 16


def qk_norm_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, q_heads, dim = q.shape
    k_heads = k.shape[1]
    q_output, k_output = q.new_empty(q.shape), k.new_empty(k.shape)
    q_groups, k_groups = (triton.cdiv(heads, HEADS_PER_PROGRAM) for heads in (q_heads, k_heads))
    _qk_norm_rope_kernel[(tokens, q_groups + k_groups)](
        q,
        k,
        q_output,
        k_output,
        q_weight.contiguous(),
        k_weight.contiguous(),
        positions.contiguous(),
        inv_freq.contiguous(),
        eps,
        q_heads,
        k_heads,
        q_groups,
        *q.stride(),
        *k.stride(),
        HALF=dim // 2,
        HALF_BLOCK=triton.next_power_of_2(dim // 2),
        HEADS=HEADS_PER_PROGRAM,
        num_warps=4,
    )
    return q_output, k_output


@triton.jit
def _qk_norm_rope_kernel(
    p_q,
    p_k,
    p_q_output,
    p_k_output,
    p_q_weight,
    p_k_weight,
    p_positions,
    p_inv_freq,
    eps,
    q_heads,
    k_heads,
    q_groups,
    q_token_stride,
    q_head_stride,
    q_dim_stride,
    k_token_stride,
    k_head_stride,
    k_dim_stride,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):
    i_token, i_group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_dim = tl.arange(0, HALF_BLOCK)
    # Angles reach the largest position, a million and more, in radians. On CUDA tl.cos and tl.sin are libdevice's
    # cosf and sinf, which reduce such arguments exactly; the hardware's own approximations would not.
    angle = tl.load(p_positions + i_token).to(tl.float32) * tl.load(p_inv_freq + o_dim, mask=o_dim < HALF, other=0.0)
    b_cos, b_sin = tl.cos(angle), tl.sin(angle)
    if i_group < q_groups:
        _norm_rope_heads(
            p_q + i_token * q_token_stride,
            p_q_output + i_token * q_heads * 2 * HALF,
            p_q_weight,
            i_group * HEADS + tl.arange(0, HEADS),
            q_heads,
            q_head_stride,
            q_dim_stride,
            b_cos,
            b_sin,
            eps,
            HALF,
            HALF_BLOCK,
        )
    else:
        _norm_rope_heads(
            p_k + i_token * k_token_stride,
            p_k_output + i_token * k_heads * 2 * HALF,
            p_k_weight,
            (i_group - q_groups) * HEADS + tl.arange(0, HEADS),
            k_heads,
            k_head_stride,
            k_dim_stride,
            b_cos,
            b_sin,
            eps,
            HALF,
            HALF_BLOCK,
        )


@triton.jit
def _norm_rope_heads(
    p_x,
    p_output,
    p_weight,
    o_head,
    heads,
    head_stride,
    dim_stride,
    b_cos,
    b_sin,
    eps,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
):
    """Heads ``o_head`` of one token; the two halves that rotate into each other are loaded apart."""
    o_dim = tl.arange(0, HALF_BLOCK)
    m_dim = o_dim < HALF
    m_head = (o_head < heads)[:, None] & m_dim[None, :]
    p_first = p_x + o_head[:, None] * head_stride + o_dim[None, :] * dim_stride
    b_first = tl.load(p_first, mask=m_head, other=0.0).to(tl.float32)
    b_second = tl.load(p_first + HALF * dim_stride, mask=m_head, other=0.0).to(tl.float32)
    mean_square = (tl.sum(b_first * b_first, axis=1) + tl.sum(b_second * b_second, axis=1)) / (2 * HALF)
    b_factor = tl.rsqrt(mean_square + eps)[:, None]

    b_weight = tl.load(p_weight + o_dim, mask=m_dim, other=0.0)
    b_first = round_and_weigh(b_first * b_factor, b_weight[None, :])
    b_weight = tl.load(p_weight + HALF + o_dim, mask=m_dim, other=0.0)
    b_second = round_and_weigh(b_second * b_factor, b_weight[None, :])
    dtype = p_output.dtype.element_ty
    p_rotated = p_output + o_head[:, None] * (2 * HALF) + o_dim[None, :]
    tl.store(p_rotated, (b_first * b_cos[None, :] - b_second * b_sin[None, :]).to(dtype), mask=m_head)
    tl.store(p_rotated + HALF, (b_second * b_cos[None, :] + b_first * b_sin[None, :]).to(dtype), mask=m_head)
