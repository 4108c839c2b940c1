"""Prints, for steps that differ in nothing but rows and requests, under which keys Triton keeps their kernels.

Run without TRITON_INTERPRET. Nothing is compiled, and no GPU is needed.
"""

import json

import torch
from sala_kernels.ahead import NoDevice
from sala_kernels.compress_keys import compress_keys
from sala_kernels.kv_scales import E4M3
from sala_kernels.layout import SparseGeometry
from sala_kernels.lightning import lightning_chunk
from sala_kernels.lightning_commit import lightning_commit
from sala_kernels.lightning_step import lightning_step
from sala_kernels.lightning_verify import lightning_verify
from sala_kernels.qk_norm_rope import qk_norm_rope
from sala_kernels.select_blocks import select_blocks
from sala_kernels.sparse_attention import sparse_attention
from sala_kernels.store_kv import store_kv
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from sala_sglang.ahead.form import ints, unread_batch

# One request and many, counts that 16 divides and others; all of them with a request of several segments.
PREFILL = [2064], [2100], [2100] + [4] * 15, [2049] + [3] * 16
DECODE = [1] * 16, [1] * 17, [1] * 33
GEOMETRY, CONTEXT, PAGES = SparseGeometry(), 2**16, 4
QUERY_HEADS, KV_HEADS, DIM = 4, 2, 32


def call_operators(rows: list[int]) -> None:
    """Every operator whose kernels take numbers of the batch, for requests with ``rows`` each."""
    requests, tokens, decode = len(rows), sum(rows), max(rows) == 1
    slots = ints(*range(requests))
    batch = unread_batch(rows, CONTEXT, CONTEXT)
    pool = torch.empty(PAGES * GEOMETRY.block_size, KV_HEADS, DIM, dtype=torch.bfloat16)
    compressed = pool.new_empty(PAGES, KV_HEADS, GEOMETRY.page_rows, DIM)
    q, k, v = (pool.new_empty(tokens, QUERY_HEADS, DIM) for _ in range(3))
    compress_keys(pool, compressed, batch, GEOMETRY, implementation="triton")
    blocks = select_blocks(q, compressed, batch, GEOMETRY, 1.0, implementation="triton")
    sparse_attention(q, pool, pool, blocks, batch, GEOMETRY, 1.0, implementation="triton")
    in_fp8, scales = pool.to(E4M3), torch.ones(2, KV_HEADS)
    store_kv(k[:, :KV_HEADS], v[:, :KV_HEADS], in_fp8, in_fp8, torch.arange(tokens), scales, implementation="triton")
    compress_keys(in_fp8, compressed, batch, GEOMETRY, kv_scales=scales, implementation="triton")
    sparse_attention(q, in_fp8, in_fp8, blocks, batch, GEOMETRY, 1.0, kv_scales=scales, implementation="triton")
    weight, positions, frequencies = pool.new_empty(DIM), torch.arange(tokens), torch.empty(DIM // 2)
    states, decay = torch.empty(PAGES, QUERY_HEADS, DIM, DIM), torch.empty(QUERY_HEADS)
    if decode:
        step = states, slots, slots, decay, 1.0
        norm_rope = weight, weight, positions, frequencies, 1e-6
        lightning_step(q, k, v, *norm_rope, *step, implementation="triton")
        stash = pool.new_empty(1, tokens, 2, QUERY_HEADS, DIM)
        lightning_verify(q, k, v, *norm_rope, states, slots, stash[0], decay, 1.0, implementation="triton")
        lightning_commit(stash, 1, states[None], slots, slots, slots, slots, decay, implementation="triton")
    else:
        qk_norm_rope(q, k, weight, weight, positions, frequencies, 1e-6, implementation="triton")
        chunk = states, slots, batch.query_start, slots, slots, decay, 1.0
        lightning_chunk(q, k, v, *chunk, implementation="triton")


def keys_of(rows: list[int]) -> dict[str, list[str]]:
    """Specialisations by kernel, in order of the launches."""
    found: dict[str, list[str]] = {}

    def record(self, *args, grid, warmup, **options):
        binder = self.device_caches[0][-1]
        _, specialization, chosen = binder(*args, **options)
        found.setdefault(self.fn.__name__, []).append(f"{specialization} {chosen}")

    JITFunction.run = record
    call_operators(rows)
    return found


if __name__ == "__main__":
    driver.set_active(NoDevice())
    print(json.dumps({"prefill": [keys_of(rows) for rows in PREFILL], "decode": [keys_of(rows) for rows in DECODE]}))
