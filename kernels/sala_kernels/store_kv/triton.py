"""store_kv on a GPU: a program for a tile of rows of one KV head, of keys or of values."""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.kernel_arguments import with_strides
from sala_kernels.kv_scales import E4M3_MAX

TILE_ROWS = 16


def store_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    kv_scales: torch.Tensor,
) -> None:
    rows, kv_heads, head_dim = k.shape
    _store_kernel[(triton.cdiv(rows, TILE_ROWS), kv_heads, 2)](
        with_strides(k),
        with_strides(v),
        with_strides(keys),
        with_strides(values),
        slots,
        kv_scales,
        rows,
        TILE=TILE_ROWS,
        LARGEST=E4M3_MAX,
        D=head_dim,
        num_warps=4,
        **dependent_launch(k.device),
    )


@triton.jit(do_not_specialize=["rows"])
def _store_kernel(
    k,
    v,
    keys,
    values,
    p_slots,
    p_scales,
    rows,
    TILE: tl.constexpr,
    LARGEST: tl.constexpr,
    D: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_predecessor(DEPENDENT)
    o_row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    m_row = o_row < rows
    slots = tl.load(p_slots + o_row, mask=m_row, other=0)
    if tl.program_id(2) == 0:
        _store_rows(k, keys, p_scales, o_row, m_row, slots, LARGEST, D)
    else:
        _store_rows(v, values, p_scales + tl.num_programs(1), o_row, m_row, slots, LARGEST, D)


@triton.jit
def _store_rows(rows, pool, p_scales, o_row, m_row, slots, LARGEST: tl.constexpr, D: tl.constexpr):
    p_rows, strides = rows
    p_pool, pool_strides = pool
    i_kv_head, o_dim = tl.program_id(1), tl.arange(0, D)
    p_row = p_rows + o_row.to(tl.int64)[:, None] * strides[0] + i_kv_head * strides[1] + o_dim[None, :] * strides[2]
    b_rows = tl.load(p_row, mask=m_row[:, None], other=0.0).to(tl.float32)
    b_rows = tl.math.div_rn(b_rows, tl.load(p_scales + i_kv_head))
    b_rows = tl.clamp(b_rows, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    p_slot = p_pool + slots[:, None] * pool_strides[0] + i_kv_head * pool_strides[1] + o_dim[None, :] * pool_strides[2]
    tl.store(p_slot, b_rows.to(p_pool.dtype.element_ty), mask=m_row[:, None])
