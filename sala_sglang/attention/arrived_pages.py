"""Compressed keys of pages that were computed by another server: made here from the keys that arrived."""

from typing import Any

import torch
from sala_kernels.compress_keys import compress_keys
from sala_kernels.layout import PagedBatch, SparseGeometry
from sglang.srt.layers.radix_attention import RadixAttention

from sala_sglang.attention.kv_pool import layer_buffers, scales_of


def sparse_layers(model: torch.nn.Module, pool: Any) -> list[RadixAttention]:
    """The attention of the layers of ``model`` that have pages in ``pool``, a HybridLinearKVPool."""
    found = (module for module in model.modules() if isinstance(module, RadixAttention))
    return [layer for layer in found if layer.layer_id in pool.full_attention_layer_id_mapping]


def compress_arrived(
    layers: list[RadixAttention],
    pool: Any,
    token_slots: torch.Tensor,
    requests: list[tuple[int, int, int]],
    geometry: SparseGeometry,
) -> None:
    """Write the compressed rows of every request's tokens ``begin`` to ``end``, whose keys are in ``pool``.

    Each row is computed by itself and from its window alone, so it has the bits it has where the keys were computed.

    layers: as sparse_layers gives them. pool: HybridLinearKVPool with their pages. token_slots [R,
    max_tokens] int32: SGLang's table of where tokens lie. requests: (row of that table, begin, end), in tokens; a
    window may reach back before begin.
    """
    rows, begins, ends = zip(*requests, strict=True)
    device = token_slots.device
    lengths = torch.tensor([end - begin for begin, end in zip(begins, ends, strict=True)])
    kv_lens = torch.tensor(ends, dtype=torch.int32, device=device)
    batch = PagedBatch(
        query_start=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int().to(device),
        kv_lens=kv_lens,
        sparse_from=torch.zeros_like(kv_lens),  # of attention alone
        request_rows=torch.tensor(rows, device=device),
        token_slots=token_slots,
        max_query_tokens=int(lengths.max()),
        max_kv_tokens=max(ends),
    )
    for layer in layers:
        keys, _, compressed = layer_buffers(pool, layer.layer_id)
        compress_keys(keys, compressed, batch, geometry, kv_scales=scales_of(layer, keys))
