"""Metadata of one step, built on the device from SGLang's ForwardBatch without a host sync.

SGLang gives the sparse and the lightning backend a call each, so each has its own plan: a PagedBatch for the
sparse layers, a StatePlan for the lightning layers. Eager steps and captured graphs build them with the same
code; under capture every tensor below is recorded over the graph runner's static buffers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from sala_kernels.layout import PagedBatch
from sala_kernels.lightning import CHUNK_TOKENS

if TYPE_CHECKING:  # importing SGLang's model executor takes long and does much
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


@dataclass(frozen=True)
class StatePlan:
    """Recurrent states of a step: where each request's state lies and where a snapshot of it goes.

    state_slots [B] int32, -1 for padding. query_start [B+1] int32. snapshot_slots [B] int32, -1 for none.
    snapshot_tokens [B] int32: rows of this step after which the snapshot is taken.
    """

    state_slots: torch.Tensor
    query_start: torch.Tensor
    snapshot_slots: torch.Tensor
    snapshot_tokens: torch.Tensor


def paged_extend(batch: ForwardBatch, token_slots: torch.Tensor, dense_len: int) -> PagedBatch:
    """Plan of a prefill step, mixed ones included: their decode rows are requests with one row.

    A prompt is dense or sparse as a whole, by its full length, so its chunks give what one pass would. Rows behind a
    dense prompt are those of a decode row, or tokens that a request had generated before it was retracted.
    """
    rows, prefixes = batch.extend_seq_lens_cpu, batch.extend_prefix_lens_cpu
    return PagedBatch(
        query_start=_query_start(batch.extend_seq_lens),
        kv_lens=batch.seq_lens.int(),
        sparse_from=(batch.orig_seq_lens < dense_len).int() * _first_sparse_step(dense_len),
        request_rows=batch.req_pool_indices,
        token_slots=token_slots,
        max_query_tokens=max(rows),
        max_kv_tokens=max(map(sum, zip(rows, prefixes, strict=True))),
    )


def paged_decode(batch: ForwardBatch, token_slots: torch.Tensor, dense_len: int, max_context_len: int) -> PagedBatch:
    """Plan of a decode step, one row per request. Bounds are those of the context: a graph serves any length."""
    kv_lens = batch.seq_lens.int()
    return PagedBatch(
        query_start=_one_row_each(batch),
        kv_lens=kv_lens,
        sparse_from=torch.full_like(kv_lens, _first_sparse_step(dense_len)),
        request_rows=batch.req_pool_indices,
        token_slots=token_slots,
        max_query_tokens=1,
        max_kv_tokens=max_context_len,
    )


def paged_verify(
    batch: ForwardBatch, token_slots: torch.Tensor, dense_len: int, max_context_len: int
) -> tuple[PagedBatch, PagedBatch]:
    """Plans of a verify step, in which every request has the same few rows: to attend, and to compress keys.

    To attend, each row is a request of one row, as in a decode step. Rows of drafts may lie behind the end of the
    context, where nothing of them is ever served: they take the last length that fits. Keys are compressed once per
    token, so there a request has all of its rows.
    """
    rows = batch.spec_info.draft_token_num
    device = batch.seq_lens.device
    ends = batch.seq_lens[:, None] + torch.arange(1, rows + 1, device=device)
    attended = ends.clamp(max=max_context_len).flatten().int()
    attend = PagedBatch(
        query_start=torch.arange(attended.numel() + 1, dtype=torch.int32, device=device),
        kv_lens=attended,
        sparse_from=torch.full_like(attended, _first_sparse_step(dense_len)),
        request_rows=batch.req_pool_indices.repeat_interleave(rows),
        token_slots=token_slots,
        max_query_tokens=1,
        max_kv_tokens=max_context_len,
    )
    if rows == 1:
        return attend, attend
    written = ends[:, -1].int()
    compress = replace(
        attend,
        query_start=torch.arange(0, attended.numel() + 1, rows, dtype=torch.int32, device=device),
        kv_lens=written,
        sparse_from=torch.zeros_like(written),  # of attention alone
        request_rows=batch.req_pool_indices,
        max_query_tokens=rows,
        max_kv_tokens=token_slots.shape[1],
    )
    return attend, compress


def only_last_rows(plan: PagedBatch, max_context_len: int) -> PagedBatch:
    """The plan of a prefill step for the last row of every request, whose keys are written already: a decode step."""
    start = torch.arange(plan.size + 1, dtype=torch.int32, device=plan.kv_lens.device)
    return replace(plan, query_start=start, max_query_tokens=1, max_kv_tokens=max_context_len)


def state_extend(batch: ForwardBatch, state_slots: torch.Tensor) -> StatePlan:
    """Plan of a prefill step. SGLang may ask for a depth just past a chunk boundary: the boundary is meant."""
    snapshot_slots = _snapshot_slots(batch, batch.mamba_track_indices, state_slots)
    snapshot_tokens = torch.zeros_like(state_slots)
    if batch.mamba_track_seqlens is not None:
        depth = (batch.mamba_track_seqlens - batch.extend_prefix_lens).clamp(min=0)
        snapshot_tokens = (depth // CHUNK_TOKENS * CHUNK_TOKENS).int()
    return StatePlan(state_slots, _query_start(batch.extend_seq_lens), snapshot_slots, snapshot_tokens)


def state_decode(batch: ForwardBatch, state_slots: torch.Tensor, track_indices: torch.Tensor | None) -> StatePlan:
    """Plan of a decode step; ``track_indices`` are the snapshot slots of rows that SGLang wants kept, if any."""
    snapshot_slots = _snapshot_slots(batch, track_indices, state_slots)
    return StatePlan(state_slots, _one_row_each(batch), snapshot_slots, torch.ones_like(state_slots))


def state_verify(batch: ForwardBatch, state_slots: torch.Tensor) -> StatePlan:
    """Plan of a verify step, which takes no snapshots: those come when it is known which rows stay."""
    nowhere = torch.full_like(state_slots, -1)
    start = torch.arange(len(state_slots) + 1, dtype=torch.int32, device=state_slots.device)
    return StatePlan(state_slots, start * batch.spec_info.draft_token_num, nowhere, torch.zeros_like(state_slots))


def _first_sparse_step(dense_len: int) -> int:
    """Position of the first generated token's query that selects blocks: its sequence has ``dense_len`` tokens."""
    return max(dense_len - 1, 0)


def _query_start(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(rows.cumsum(0), (1, 0)).int()


def _one_row_each(batch: ForwardBatch) -> torch.Tensor:
    return torch.arange(batch.batch_size + 1, dtype=torch.int32, device=batch.seq_lens.device)


def _snapshot_slots(batch: ForwardBatch, indices: torch.Tensor | None, state_slots: torch.Tensor) -> torch.Tensor:
    nowhere = torch.full_like(state_slots, -1)
    if indices is None or batch.mamba_track_mask is None:
        return nowhere
    return torch.where(batch.mamba_track_mask, indices.int(), nowhere)
