"""What the GPU kernels that normalise heads share."""

import triton
import triton.language as tl


@triton.jit
def round_and_weigh(b_normed, b_weight):
    """Round to the dtype of the weight, multiply by it, round again; back in float32."""
    b_rounded = b_normed.to(b_weight.dtype).to(tl.float32)
    return (b_rounded * b_weight.to(tl.float32)).to(b_weight.dtype).to(tl.float32)
