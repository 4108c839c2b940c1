"""What kernels share whose programs have a row of a matrix each, or a piece of one."""

import triton
import triton.language as tl


def row_warps(block: int) -> int:
    """Warps of a program that holds a row of ``block`` columns: one for every 512, up to 16.

    >>> row_warps(4096)
    8
    """
    return min(max(block // 512, 1), 16)


@triton.jit
def load_row(x, i_row, o_column, m_column):
    """Columns ``o_column`` of row ``i_row`` (int64) of ``x`` [T, W] with strides; 0 where not ``m_column``."""
    p_x, strides = x
    return tl.load(p_x + i_row * strides[0] + o_column * strides[1], mask=m_column, other=0.0)
