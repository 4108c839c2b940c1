"""compress_keys on a GPU: a program per KV head, kind of window and stride of rows; one window ends there at most."""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.kernel_arguments import batch_pointers, tokens_of, with_strides
from sala_kernels.layout import COARSE_FACTOR, PagedBatch, SparseGeometry

CHUNK_TOKENS = 64  # tokens of a window that are loaded at a time, at most


def compress_keys(
    keys: torch.Tensor,
    compressed: torch.Tensor,
    batch: PagedBatch,
    geometry: SparseGeometry,
    kv_scales: torch.Tensor | None,
) -> None:
    stride = geometry.kernel_stride
    # K1 and K2 windows have programs of their own, since a decode step waits for the longest one.
    grid = (triton.cdiv(batch.max_query_tokens, stride), batch.size, 2 * keys.shape[1])
    _compress_kernel[grid](
        with_strides(keys),
        with_strides(compressed),
        batch_pointers(batch),
        kv_scales,
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
    keys,
    compressed,
    batch,
    p_kv_scales,
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
    wait_for_predecessor(DEPENDENT)
    i_request, i_kv_head, is_coarse = tl.program_id(1), tl.program_id(2) // 2, tl.program_id(2) % 2
    p_tokens = tokens_of(batch, i_request)
    kv_len = tl.load(batch.kv_lens + i_request)
    rows = tl.load(batch.query_start + i_request + 1) - tl.load(batch.query_start + i_request)
    # Tokens before the end of the only K1 window that ends in rows STRIDE·i … STRIDE·(i+1) − 1 of the request.
    first = kv_len - rows + tl.program_id(0) * STRIDE
    end = (first // STRIDE + 1) * STRIDE
    if end > kv_len:
        return

    o_dim = tl.arange(0, D)
    p_keys, key_strides = keys
    p_head = p_keys + i_kv_head * key_strides[1] + o_dim[None, :] * key_strides[2]
    page = tl.load(p_tokens + end - 1) // BLOCK
    p_compressed, strides = compressed
    p_output = p_compressed + page.to(tl.int64) * strides[0] + i_kv_head * strides[1] + o_dim * strides[3]
    if is_coarse == 0:
        if end >= SIZE:
            b_mean = _window_mean(p_head, p_tokens, end, key_strides[0], p_kv_scales, i_kv_head, SIZE, CHUNK, D)
            i_row = (end // STRIDE - 1) % FINE_ROWS
            tl.store(p_output + i_row * strides[2], b_mean.to(p_compressed.dtype.element_ty))
    elif (end % (FACTOR * STRIDE) == 0) & (end >= FACTOR * SIZE):
        b_mean = _window_mean(p_head, p_tokens, end, key_strides[0], p_kv_scales, i_kv_head, FACTOR * SIZE, CHUNK, D)
        i_row = FINE_ROWS + (end // (FACTOR * STRIDE) - 1) % COARSE_ROWS
        tl.store(p_output + i_row * strides[2], b_mean.to(p_compressed.dtype.element_ty))


@triton.jit
def _window_mean(
    p_head,
    p_tokens,
    end,
    slot_stride,
    p_kv_scales,
    i_kv_head,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
):
    """Mean of the SIZE keys before token ``end``, [D] float32."""
    b_sum = tl.zeros([CHUNK, D], tl.float32)
    for i_token in tl.static_range(0, SIZE, CHUNK):  # unrolled: the loads do not wait for each other
        slots = tl.load(p_tokens + end - SIZE + i_token + tl.arange(0, CHUNK)).to(tl.int64)
        b_sum += tl.load(p_head + slots[:, None] * slot_stride).to(tl.float32)
    b_mean = tl.sum(b_sum, 0) / SIZE
    if p_kv_scales is not None:
        b_mean *= tl.load(p_kv_scales + i_kv_head)
    return b_mean
