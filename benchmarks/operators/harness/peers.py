"""Libraries that could serve in an operator's place, on the same inputs. Both are optional."""

from collections.abc import Sequence
from functools import partial

import torch
from sala_kernels.layout import PagedBatch

from benchmarks.operators.harness.sizes import Sizes
from benchmarks.operators.harness.timing import Call


def flashinfer_dense(
    queries: list[torch.Tensor], keys: torch.Tensor, values: torch.Tensor, batch: PagedBatch, sizes: Sizes
) -> list[Call]:
    """Causal attention of one whole prompt over the same pages; planning, which happens on the host, is left out."""
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    block, tokens = sizes.geometry.block_size, batch.max_kv_tokens
    wrapper = BatchPrefillWithPagedKVCacheWrapper(
        torch.empty(2**28, dtype=torch.uint8, device=keys.device), kv_layout="NHD"
    )
    pages = batch.token_slots[0, :tokens:block] // block
    wrapper.plan(
        torch.tensor([0, tokens], dtype=torch.int32),
        torch.tensor([0, len(pages)], dtype=torch.int32),
        pages,
        torch.tensor([(tokens - 1) % block + 1], dtype=torch.int32),
        sizes.query_heads,
        sizes.kv_heads,
        sizes.head_dim,
        block,
        causal=True,
        q_data_type=queries[0].dtype,
    )
    pool = tuple(x.unflatten(0, (-1, block)) for x in (keys, values))
    return [partial(wrapper.run, q, pool) for q in queries]


def fla_chunk(
    inputs: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    states: torch.Tensor,
    query_start: torch.Tensor,
    log_decay: torch.Tensor,
    scale: float,
) -> list[Call]:
    """chunk_simple_gla over requests of q, k, v [T, H, D] and their states [B, H, D, D]."""
    from fla.ops.simple_gla import chunk_simple_gla

    options = {"g_gamma": log_decay, "scale": scale, "initial_state": states, "output_final_state": True}
    options["cu_seqlens"] = query_start.long()
    return [partial(chunk_simple_gla, *(x[None] for x in rows), **options) for rows in inputs]
