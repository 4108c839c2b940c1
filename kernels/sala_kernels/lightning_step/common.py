"""What decode and verify steps of a lightning layer share on a GPU: one head's q or k, normed and rotated."""

import triton
import triton.language as tl

from sala_kernels.qk_norm_rope.common import round_and_weigh


@triton.jit
def load_pairs(p_x, D: tl.constexpr):
    """D elements, and for each the one that it rotates with."""
    o_dim = tl.arange(0, D)
    return tl.load(p_x + o_dim), tl.load(p_x + (o_dim + D // 2) % D)


@triton.jit
def norm_rope(pairs, weights, b_cos, b_sin, eps, D: tl.constexpr):
    """One head as qk_norm_rope leaves it, in float32."""
    b_x, b_pair = pairs[0].to(tl.float32), pairs[1].to(tl.float32)
    # Half by half, as qk_norm_rope sums.
    b_squares = tl.reshape(b_x * b_x, [2, D // 2])
    factor = tl.rsqrt(tl.sum(tl.sum(b_squares, axis=1), axis=0) / D + eps)
    b_x, b_pair = round_and_weigh(b_x * factor, weights[0]), round_and_weigh(b_pair * factor, weights[1])
    b_turned = tl.where(tl.arange(0, D) < D // 2, -b_pair, b_pair)
    return (b_x * b_cos + b_turned * b_sin).to(weights[0].dtype).to(tl.float32)


@triton.jit
def next_state(b_state, b_k, b_v, log_decay):
    """The state after one more row, whose k and v are float32."""
    return tl.exp(log_decay) * b_state + b_k[:, None] * b_v[None, :]
