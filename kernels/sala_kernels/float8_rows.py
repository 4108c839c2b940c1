"""Rows of e4m3 with a scale each, which products of FP8 take; operators write them in the place of their output."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

E4M3_MAX = 448.0
SMALLEST = 2.0**-126  # of float32 with full precision; rows with a smaller scale count as zeros


class Float8Rows(NamedTuple):
    """Rows ``codes · scales``.

    codes: [T, W], dtype float8_e4m3fn.
    scales: [T, 1] float32, the largest absolute value of each row over 448.

    >>> quantize_rows(torch.tensor([[2.0, -4.0]]))
    Float8Rows(codes=tensor([[ 224., -448.]], dtype=torch.float8_e4m3fn), scales=tensor([[0.0089]]))
    """

    codes: torch.Tensor
    scales: torch.Tensor


def quantize_rows(x: torch.Tensor) -> Float8Rows:
    """``scale = max |x| / 448`` and ``x · (1/scale)`` in e4m3 for every row.

    x: [T, W], a floating dtype.

    Computes in float32, as SGLang's quantiser of tokens does. A row of zeros has the scale 0 and codes 0; one with NaN
    or infinity has codes of NaN.

    >>> quantize_rows(torch.tensor([[448.0, 17.0]])).codes.float()
    tensor([[448.,  16.]])
    """
    wide = x.float()
    # By a tensor: torch multiplies by the reciprocal of a number on GPUs, which may be a bit off.
    scales = wide.abs().amax(-1, keepdim=True) / torch.full((), E4M3_MAX, device=x.device)
    inverses = torch.where(scales < SMALLEST, 0.0, 1.0 / scales)
    return Float8Rows((wide * inverses).to(torch.float8_e4m3fn), scales)


def empty_float8_rows(tokens: int, width: int, device: torch.device) -> Float8Rows:
    """Uninitialised rows [T, W] on ``device``, for ``tokens`` T and ``width`` W.

    >>> empty_float8_rows(2, 3, torch.device("cpu")).codes.shape
    torch.Size([2, 3])
    """
    codes = torch.empty(tokens, width, dtype=torch.float8_e4m3fn, device=device)
    return Float8Rows(codes, torch.empty(tokens, 1, dtype=torch.float32, device=device))


@triton.jit
def store_float8_row(p_codes, p_scales, i_row, width, o_column, m_column, b_row):
    """Quantise a row ``b_row`` [BLOCK] float32, 0 where not ``m_column``, as ``quantize_rows`` does, and store it."""
    scale = tl.div_rn(tl.max(tl.abs(b_row), 0), 448.0)
    inverse = tl.where(scale < 1.1754943508222875e-38, 0.0, tl.div_rn(1.0, scale))
    tl.store(p_scales + i_row, scale)
    tl.store(p_codes + i_row * width + o_column, (b_row * inverse).to(tl.float8e4nv), mask=m_column)
