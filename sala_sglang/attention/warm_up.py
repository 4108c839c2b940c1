"""Compiles, while a server starts, the kernels that only long prompts need: the first of them need not wait for it."""

import logging
import time

import torch
from sala_kernels.kv_scales import E4M3
from sala_kernels.layout import PagedBatch, SparseGeometry
from sala_kernels.lightning import lightning_chunk
from sala_kernels.lightning_commit import lightning_commit
from sala_kernels.qk_norm_rope import qk_norm_rope
from sala_kernels.select_blocks import select_blocks
from sala_kernels.sparse_attention import serving_implementation, sparse_attention

logger = logging.getLogger(__name__)

ROWS = 2  # a single row would be a decode step, as the last layer's is
LONG_ROWS = 4224  # enough to fill a GPU, however few heads a tensor-parallel rank has
PROJECTIONS = 4  # q, k, v and gate of a lightning layer come out of one product: rows of v lie as far apart
LONG_TOKENS = 4096  # more than a segment of the lightning kernels, which short prompts do not need all


def prompt_lengths(geometry: SparseGeometry, context_len: int) -> list[int]:
    """Tokens of prompts that need kernels of their own, up to ``context_len``.

    Up to K_SEL blocks nothing is scored; from there on the top-k holds the next power of two of blocks.
    """
    blocks = [1, 1 << geometry.selected_blocks.bit_length()]
    while blocks[-1] * geometry.block_size < context_len:
        blocks.append(2 * blocks[-1])
    return sorted({min(count * geometry.block_size, context_len) for count in blocks})


def compile_sparse(
    keys: torch.Tensor,
    values: torch.Tensor,
    compressed: torch.Tensor,
    token_slots: torch.Tensor,
    geometry: SparseGeometry,
    heads: tuple[int, int],
    context_len: int,
) -> None:
    """Select and attend once per prompt length and once for a last row, of zeros; the pools are only read.

    Where CUDA C++ serves, attend also in a step that fills the GPU, as only such ones launch it.

    keys, values [slots, Hkv, D], compressed [pages, Hkv, page_rows, D] and token_slots [R, max_tokens] as in the
    steps that will follow, because Triton compiles by their strides. heads: query heads that select and that attend.
    """
    began = time.perf_counter()
    head_dim = keys.shape[2]
    # Queries have the dtype of compressed keys, also where keys and values are in FP8.
    selecting, attending = (compressed.new_zeros(ROWS, count, head_dim) for count in heads)
    scales = torch.ones(2, keys.shape[1], device=keys.device) if keys.dtype == E4M3 else None
    for rows, length in [*((ROWS, length) for length in prompt_lengths(geometry, context_len)), (1, context_len)]:
        batch = _end_of_prompt(rows, length, token_slots)
        blocks = select_blocks(selecting[:rows], compressed, batch, geometry, head_dim**-0.5)
        arguments = attending[:rows], keys, values, blocks, batch, geometry, head_dim**-0.5
        sparse_attention(*arguments, kv_scales=scales)
    group = attending.shape[1] // keys.shape[1]
    served = serving_implementation(keys.device, keys.dtype, head_dim, group, geometry.block_size)
    if served == "cuda":
        rows = min(LONG_ROWS, context_len)
        blocks = torch.full((rows, keys.shape[1], geometry.selected_blocks), -1, dtype=torch.int32, device=keys.device)
        blocks[:, :, 0] = 0
        queries, batch = keys.new_zeros(rows, *attending.shape[1:]), _end_of_prompt(rows, context_len, token_slots)
        sparse_attention(queries, keys, values, blocks, batch, geometry, head_dim**-0.5)
    seconds = time.perf_counter() - began
    logger.info("Kernels of sparse prefill are compiled, after %.1f s; %r serves sparse_attention", seconds, served)


def compile_lightning(states: torch.Tensor, log_decay: torch.Tensor, dtype: torch.dtype) -> None:
    """Run a prefill of zeros without a state, norm and rotation included.

    states: [slots, H, D, D], neither read nor written. log_decay: [H], as in the steps that will follow; dtype: that of
        their rows.
    """
    began = time.perf_counter()
    (heads, head_dim), device = states.shape[1:3], states.device
    nowhere, frequencies = torch.full((1,), -1, dtype=torch.int32, device=device), torch.zeros(head_dim // 2).to(device)
    for rows in (LONG_TOKENS, 1):  # SGLang's health check is a prompt of one token
        projected = torch.zeros(rows, PROJECTIONS * heads * head_dim, dtype=dtype, device=device)
        q, k, v, _ = (part.view(rows, heads, head_dim) for part in projected.chunk(PROJECTIONS, dim=1))
        weight, positions = q.new_zeros(head_dim), torch.zeros(rows, dtype=torch.int64, device=device)
        # Decode steps, of which graphs are captured at start, include norm and rotation in another kernel.
        q, k = qk_norm_rope(q, k, weight, weight, positions, frequencies, 1.0)
        start = torch.tensor([0, rows], dtype=torch.int32, device=device)
        lightning_chunk(q, k, v, states, nowhere, start, nowhere, torch.zeros_like(nowhere), log_decay, 1.0)
    logger.info("Kernels of lightning prefill are compiled, after %.1f s", time.perf_counter() - began)


def compile_commit(stash: torch.Tensor, rows: int, states: torch.Tensor, log_decay: torch.Tensor) -> None:
    """Commit nothing, to no state: this kernel is in no graph, and the first accepted draft need not wait for it.

    The arguments as lightning_commit takes them.
    """
    nowhere = torch.full((1,), -1, dtype=torch.int32, device=states.device)
    lightning_commit(stash, rows, states, nowhere, torch.zeros_like(nowhere), nowhere, nowhere, log_decay)


def _end_of_prompt(rows: int, length: int, token_slots: torch.Tensor) -> PagedBatch:
    """The last rows of a sparse prompt, wherever the first row of ``token_slots`` says that its tokens lie."""
    numbers = torch.tensor([0, rows, length, 0], dtype=torch.int32, device=token_slots.device)
    return PagedBatch(
        query_start=numbers[:2].clone(),
        kv_lens=numbers[2:3].clone(),
        sparse_from=numbers[3:].clone(),
        request_rows=numbers[3:].long(),
        token_slots=token_slots,
        max_query_tokens=rows,
        max_kv_tokens=length,
    )
