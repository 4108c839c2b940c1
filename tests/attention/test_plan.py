"""Plans of a step and the size of the compressed keys."""

from types import SimpleNamespace

import pytest
import torch
from sala_kernels.layout import SparseGeometry

from sala_sglang.attention.plan import paged_decode, paged_extend, state_decode, state_extend

TOKEN_SLOTS = torch.arange(4 * 1024, dtype=torch.int32).view(4, 1024)


def extend_batch(prefixes: list[int], rows: list[int], prompts: list[int], **tracking) -> SimpleNamespace:
    fields = {"mamba_track_indices": None, "mamba_track_mask": None, "mamba_track_seqlens": None} | tracking
    return SimpleNamespace(
        batch_size=len(rows),
        extend_seq_lens=torch.tensor(rows, dtype=torch.int32),
        extend_prefix_lens=torch.tensor(prefixes, dtype=torch.int32),
        extend_seq_lens_cpu=rows,
        extend_prefix_lens_cpu=prefixes,
        seq_lens=torch.tensor(prefixes) + torch.tensor(rows),
        orig_seq_lens=torch.tensor(prompts, dtype=torch.int32),
        req_pool_indices=torch.arange(1, len(rows) + 1),
        **fields,
    )


def test_extend_decides_by_the_whole_prompt():
    plan = paged_extend(extend_batch([0, 64, 511], [64, 200, 1], [512, 511, 512]), TOKEN_SLOTS, dense_len=512)
    assert plan.sparse_from.tolist() == [0, 511, 0] and plan.sparse_from.dtype == torch.int32
    assert plan.query_start.tolist() == [0, 64, 264, 265] and plan.query_start.dtype == torch.int32
    assert plan.kv_lens.tolist() == [64, 264, 512]
    assert (plan.max_query_tokens, plan.max_kv_tokens) == (200, 512)


def test_decode_switches_at_dense_len():
    batch = SimpleNamespace(
        batch_size=3, seq_lens=torch.tensor([1, 511, 512]), req_pool_indices=torch.tensor([0, 1, 2])
    )
    plan = paged_decode(batch, TOKEN_SLOTS, dense_len=512, max_context_len=1024)
    assert (plan.kv_lens - 1 >= plan.sparse_from).tolist() == [False, False, True]
    assert plan.sparse_from.dtype == torch.int32
    assert plan.query_start.tolist() == [0, 1, 2, 3]
    assert (plan.max_query_tokens, plan.max_kv_tokens) == (1, 1024)


@pytest.mark.parametrize(
    "prefix, rows, track, tokens",
    [
        (0, 128, 128, 128),  # ends on a boundary
        (64, 100, 164, 64),  # ends past one
        (0, 200, 129, 128),  # a boundary before the end, asked for as one token more
    ],
)
def test_extend_snapshots_fall_on_chunk_boundaries(prefix, rows, track, tokens):
    batch = extend_batch(
        [prefix, 0],
        [rows, 1],
        [rows + prefix, 1],
        mamba_track_indices=torch.tensor([7, -1]),
        mamba_track_mask=torch.tensor([True, False]),
        mamba_track_seqlens=torch.tensor([track, -1]),
    )
    plan = state_extend(batch, torch.tensor([3, 4], dtype=torch.int32))
    assert plan.snapshot_slots.tolist() == [7, -1]
    assert plan.snapshot_tokens[0] == tokens
    assert plan.state_slots.tolist() == [3, 4]


def test_decode_snapshots_only_marked_rows():
    batch = SimpleNamespace(batch_size=2, seq_lens=torch.tensor([256, 9]), mamba_track_mask=torch.tensor([True, False]))
    slots = torch.tensor([3, -1], dtype=torch.int32)
    assert state_decode(batch, slots, torch.tensor([5, 6])).snapshot_slots.tolist() == [5, -1]
    assert state_decode(batch, slots, None).snapshot_slots.tolist() == [-1, -1]


def test_compressed_keys_of_the_released_model_cost_320_bytes_per_token():
    assert SparseGeometry().compressed_bytes_per_token(layers=8, kv_heads=2, head_dim=128, itemsize=2) == 320
