"""Plans of a step and the size of the compressed keys."""

from types import SimpleNamespace

import pytest
import torch
from sala_kernels.layout import SparseGeometry

from sala_sglang.attention.plan import (
    paged_decode,
    paged_extend,
    paged_verify,
    state_decode,
    state_extend,
    state_verify,
)

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


def verify_batch(lengths: list[int], rows: int) -> SimpleNamespace:
    return SimpleNamespace(
        batch_size=len(lengths),
        seq_lens=torch.tensor(lengths),
        req_pool_indices=torch.arange(1, len(lengths) + 1),
        spec_info=SimpleNamespace(draft_token_num=rows),
    )


def test_verify_attends_by_rows_and_compresses_by_requests():
    attend, compress = paged_verify(verify_batch([9, 509], 4), TOKEN_SLOTS, dense_len=512, max_context_len=1000)
    assert attend.kv_lens.tolist() == [10, 11, 12, 13, 510, 511, 512, 513]
    assert attend.request_rows.tolist() == [1] * 4 + [2] * 4
    assert attend.query_start.tolist() == list(range(9)) and attend.max_query_tokens == 1
    assert (attend.kv_lens - 1 >= attend.sparse_from).tolist() == [False] * 6 + [True] * 2
    assert compress.kv_lens.tolist() == [13, 513] and compress.query_start.tolist() == [0, 4, 8]
    assert compress.request_rows.tolist() == [1, 2] and compress.max_query_tokens == 4
    for plan in (attend, compress):
        tensors = plan.query_start, plan.kv_lens, plan.sparse_from
        assert all(x.dtype == torch.int32 and x.is_contiguous() for x in tensors)
        # Scratch is sized by these bounds.
        assert int(plan.kv_lens.max()) <= plan.max_kv_tokens <= TOKEN_SLOTS.shape[1]


def test_each_row_of_a_verify_step_is_the_decode_step_at_its_position():
    attend, _ = paged_verify(verify_batch([509], 4), TOKEN_SLOTS, dense_len=512, max_context_len=1000)
    for row in range(4):
        step = SimpleNamespace(batch_size=1, seq_lens=torch.tensor([510 + row]), req_pool_indices=torch.tensor([1]))
        plan = paged_decode(step, TOKEN_SLOTS, dense_len=512, max_context_len=1000)
        for name in ("kv_lens", "sparse_from", "request_rows"):
            assert getattr(attend, name)[row : row + 1].tolist() == getattr(plan, name).tolist()
        assert (attend.max_kv_tokens, attend.max_query_tokens) == (plan.max_kv_tokens, plan.max_query_tokens)


def test_drafts_behind_the_end_of_the_context_stay_within_bounds():
    attend, compress = paged_verify(verify_batch([998], 6), TOKEN_SLOTS, dense_len=512, max_context_len=1000)
    assert attend.kv_lens.tolist() == [999, 1000, 1000, 1000, 1000, 1000] and attend.max_kv_tokens == 1000
    assert compress.kv_lens.tolist() == [1004] and compress.max_kv_tokens == 1024


def test_verify_of_one_row_is_a_decode_step():
    attend, compress = paged_verify(verify_batch([9, 509], 1), TOKEN_SLOTS, dense_len=512, max_context_len=1000)
    assert attend is compress and attend.kv_lens.tolist() == [10, 510]


def test_verify_takes_no_snapshots():
    plan = state_verify(verify_batch([9, 509], 4), torch.tensor([3, -1], dtype=torch.int32))
    assert plan.state_slots.tolist() == [3, -1] and plan.snapshot_slots.tolist() == [-1, -1]
    assert plan.query_start.tolist() == [0, 4, 8] and plan.query_start.dtype == torch.int32


def test_compressed_keys_of_the_released_model_cost_320_bytes_per_token():
    assert SparseGeometry().compressed_bytes_per_token(layers=8, kv_heads=2, head_dim=128, itemsize=2) == 320
