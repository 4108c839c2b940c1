"""The specification of sparse_attention in code."""

import torch

from sala_kernels.contract import working_dtype
from sala_kernels.kv_scales import gather_rows
from sala_kernels.sparse_attention import Arguments

QUERY_CHUNK = 128  # bounds the score matrix


def sparse_attention(arguments: Arguments) -> torch.Tensor:
    queries, keys, values, block_ids, batch, geometry, scale, kv_scales = arguments
    work = working_dtype(queries)
    key_scales, value_scales = (None, None) if kv_scales is None else kv_scales
    output = torch.empty_like(queries)
    for request in range(batch.size):
        rows, positions = batch.rows(request)
        slots = batch.slots(request)
        k, v = gather_rows(keys, slots, key_scales, work), gather_rows(values, slots, value_scales, work)
        token = torch.arange(len(slots), device=queries.device)
        for chunk in torch.arange(rows.start, rows.stop).split(QUERY_CHUNK):
            mask = (token <= positions[chunk - rows.start][:, None])[:, None]
            sparse = (positions[chunk - rows.start] >= batch.sparse_from[request])[:, None, None]
            listed = block_ids[chunk].where(sparse, -1)
            mask = mask & (~sparse | _selected(listed, token // geometry.block_size))
            grouped = queries[chunk].to(work).unflatten(1, (k.shape[1], -1))
            logits = scale * torch.einsum("tkgd,lkd->tkgl", grouped, k)
            weights = logits.masked_fill(~mask[:, :, None], -torch.inf).softmax(-1)
            output[chunk] = torch.einsum("tkgl,lkd->tkgd", weights, v).flatten(1, 2).to(output.dtype)
    return output


def _selected(block_ids: torch.Tensor, token_blocks: torch.Tensor) -> torch.Tensor:
    """[T, Hkv, L] bool: whether the block of each token is among the ids [T, Hkv, K_SEL]."""
    blocks = int(token_blocks[-1]) + 1
    chosen = torch.zeros(*block_ids.shape[:2], blocks + 1, dtype=torch.bool, device=block_ids.device)
    chosen.scatter_(-1, block_ids.long().where(block_ids >= 0, blocks), True)
    return chosen[..., token_blocks]
