"""qk_norm_rope on a GPU: one launch for both tensors, a program per token and group of heads."""

import torch
import triton
import triton.language as tl

from sala_kernels.kernel_arguments import with_strides
from sala_kernels.qk_norm_rope import Arguments
from sala_kernels.qk_norm_rope.common import round_and_weigh

HEADS_PER_PROGRAM = 16


def qk_norm_rope(arguments: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, q_weight, k_weight, positions, inv_freq, eps = arguments
    tokens, q_heads, dim = q.shape
    k_heads = k.shape[1]
    q_output, k_output = q.new_empty(q.shape), k.new_empty(k.shape)
    q_groups, k_groups = (triton.cdiv(heads, HEADS_PER_PROGRAM) for heads in (q_heads, k_heads))
    _qk_norm_rope_kernel[(tokens, q_groups + k_groups)](
        with_strides(q),
        with_strides(k),
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
        HALF=dim // 2,
        HALF_BLOCK=triton.next_power_of_2(dim // 2),
        HEADS=HEADS_PER_PROGRAM,
        num_warps=4,
    )
    return q_output, k_output


@triton.jit
def _qk_norm_rope_kernel(
    q,
    k,
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
        o_head = i_group * HEADS + tl.arange(0, HEADS)
        _norm_rope_heads(q, p_q_output, p_q_weight, i_token, o_head, q_heads, b_cos, b_sin, eps, HALF, HALF_BLOCK)
    else:
        o_head = (i_group - q_groups) * HEADS + tl.arange(0, HEADS)
        _norm_rope_heads(k, p_k_output, p_k_weight, i_token, o_head, k_heads, b_cos, b_sin, eps, HALF, HALF_BLOCK)


@triton.jit
def _norm_rope_heads(
    x,
    p_output,
    p_weight,
    i_token,
    o_head,
    heads,
    b_cos,
    b_sin,
    eps,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
):
    """Heads ``o_head`` of one token of ``x`` with strides; halves that rotate into each other are loaded apart."""
    p_x, strides = x
    p_x += i_token * strides[0]
    p_output += i_token * heads * 2 * HALF
    o_dim = tl.arange(0, HALF_BLOCK)
    m_dim = o_dim < HALF
    m_head = (o_head < heads)[:, None] & m_dim[None, :]
    p_first = p_x + o_head[:, None] * strides[1] + o_dim[None, :] * strides[2]
    b_first = tl.load(p_first, mask=m_head, other=0.0).to(tl.float32)
    b_second = tl.load(p_first + HALF * strides[2], mask=m_head, other=0.0).to(tl.float32)
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
