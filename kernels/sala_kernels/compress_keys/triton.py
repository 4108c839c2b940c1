"""compress_keys on a GPU: a program per KV head, kind of window and stride of rows; one window ends there at most."""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, meet_predecessor
from sala_kernels.layout import COARSE_FACTOR, PagedBatch, SparseGeometry

CHUNK_TOKENS = 64  # tokens of a window that are loaded at a time, at most


def compress_keys(keys: torch.Tensor, compressed: torch.Tensor, batch: PagedBatch, geometry: SparseGeometry) -> None:
    stride = geometry.kernel_stride
    # K1 and K2 windows have programs of their own, since a decode step waits for the longest one.
    grid = (triton.cdiv(batch.max_query_tokens, stride), batch.size, 2 * keys.shape[1])
    _compress_kernel[grid](
        keys,
        compressed,
        batch.query_start,
        batch.kv_lens,
        batch.request_rows,
        batch.token_slots,
        batch.token_slots.stride(0),
        *keys.stride(),
        *compressed.stride(),
        SIZE=geometry.kernel_size,
        STRIDE=stride,
        FACTOR=COARSE_FACTOR,
        BLOCK=geometry.block_size,
        FINE_ROWS=geometry.fine_rows,
        COARSE_ROWS=geometry.coarse_rows,
        CHUNK=min(geometry.kernel_size & -geometry.kernel_size, CHUNK_TOKENS),
        D=keys.shape[2],
        **dependent_launch(keys.device),
        num_warps=8,
    )


@triton.jit
def _compress_kernel(
    p_keys,
    p_compressed,
    p_query_start,
    p_kv_lens,
    p_request_rows,
    p_token_slots,
    token_slots_stride,
    key_slot_stride,
    key_head_stride,
    key_dim_stride,
    page_stride,
    head_stride,
    row_stride,
    dim_stride,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK: tl.constexpr,
    FINE_ROWS: tl.constexpr,
    COARSE_ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    meet_predecessor(DEPENDENT)
    i_request, i_kv_head, is_coarse = tl.program_id(1), tl.program_id(2) // 2, tl.program_id(2) % 2
    i_tokens = tl.load(p_request_rows + i_request).to(tl.int64) * token_slots_stride
    kv_len = tl.load(p_kv_lens + i_request)
    rows = tl.load(p_query_start + i_request + 1) - tl.load(p_query_start + i_request)
    # Tokens before the end of the only K1 window that ends in rows STRIDE·i … STRIDE·(i+1) − 1 of the request.
    first = kv_len - rows + tl.program_id(0) * STRIDE
    end = (first // STRIDE + 1) * STRIDE
    if end > kv_len:
        return

    p_tokens = p_token_slots + i_tokens
    o_dim = tl.arange(0, D)
    p_head = p_keys + i_kv_head * key_head_stride + o_dim[None, :] * key_dim_stride
    page = tl.load(p_tokens + end - 1) // BLOCK
    p_output = p_compressed + page.to(tl.int64) * page_stride + i_kv_head * head_stride + o_dim * dim_stride
    if is_coarse == 0:
        if end >= SIZE:
            b_mean = _window_mean(p_head, p_tokens, end, key_slot_stride, SIZE, CHUNK, D)
            i_row = (end // STRIDE - 1) % FINE_ROWS
            tl.store(p_output + i_row * row_stride, b_mean.to(p_compressed.dtype.element_ty))
    elif (end % (FACTOR * STRIDE) == 0) & (end >= FACTOR * SIZE):
        b_mean = _window_mean(p_head, p_tokens, end, key_slot_stride, FACTOR * SIZE, CHUNK, D)
        i_row = FINE_ROWS + (end // (FACTOR * STRIDE) - 1) % COARSE_ROWS
        tl.store(p_output + i_row * row_stride, b_mean.to(p_compressed.dtype.element_ty))


@triton.jit
def _window_mean(
    p_head,
    p_tokens,
    end,
    key_slot_stride,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
):
    """Mean of the SIZE keys before token ``end``, [D] float32."""
    b_sum = tl.zeros([CHUNK, D], tl.float32)
    for i_token in tl.static_range(0, SIZE, CHUNK):  # unrolled: the loads do not wait for each other
        slots = tl.load(p_tokens + end - SIZE + i_token + tl.arange(0, CHUNK)).to(tl.int64)
        b_sum += tl.load(p_head + slots[:, None] * key_slot_stride).to(tl.float32)
    return tl.sum(b_sum, 0) / SIZE
