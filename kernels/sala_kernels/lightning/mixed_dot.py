"""Products of float32 blocks with blocks in the dtype of the inputs, on the tensor cores."""

import torch
import triton
import triton.language as tl


@triton.jit
def dot_float32(b_left, b_right, PRECISION: tl.constexpr, b_sum=None):
    """Product of a float32 block and one in the dtype of the inputs, in either order, in float32, added to ``b_sum``.

    Beside bfloat16 the float32 block is split into the sum of two bfloat16 blocks, which keeps 16 of its 24 bits
    at the cost of a TF32 product, which would keep 11.
    """
    if b_left.dtype == tl.bfloat16:
        b_high = b_right.to(tl.bfloat16)
        b_low = (b_right - b_high.to(tl.float32)).to(tl.bfloat16)
        return tl.dot(b_left, b_high, acc=tl.dot(b_left, b_low, acc=b_sum))
    elif b_right.dtype == tl.bfloat16:
        b_high = b_left.to(tl.bfloat16)
        b_low = (b_left - b_high.to(tl.float32)).to(tl.bfloat16)
        return tl.dot(b_high, b_right, acc=tl.dot(b_low, b_right, acc=b_sum))
    else:
        return tl.dot(b_left.to(tl.float32), b_right.to(tl.float32), acc=b_sum, input_precision=PRECISION)


def product_precision(inputs: torch.Tensor) -> str:
    """PRECISION of dot_float32 beside ``inputs``: float16 fits into TF32 without loss; of float32 it keeps 11 bits."""
    return "tf32" if inputs.dtype == torch.float16 else "ieee"
