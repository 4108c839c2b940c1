"""Which rows the last layer computes, and that a plan for them is a decode step."""

from types import SimpleNamespace

import pytest
import torch
from sala_kernels.layout import PagedBatch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardMode
from sglang.srt.model_executor.runner_utils.prefill_graph import prefill_graph_scope

from sala_sglang.attention.plan import only_last_rows
from sala_sglang.models.last_rows import last_rows

ROWS = [3, 1, 4]


def prefill(**changes) -> SimpleNamespace:
    """What a ForwardBatch says of a prefill step of three requests that want no log-probabilities."""
    unused = (
        "top_logprobs_nums",
        "token_ids_logprobs",
        "extend_logprob_start_lens_cpu",
        "spec_info",
        "dp_padding_mode",
        "global_num_tokens_gpu",
        "dp_local_start_pos",
        "dp_local_num_tokens",
        "global_dp_buffer_len",
        "global_num_tokens_for_logprob_cpu",
        "global_num_tokens_for_logprob_gpu",
        "extend_logprob_pruned_lens_cpu",
        "extend_input_logprob_token_ids_gpu",
        "next_token_logits_buffer",
        "mm_input_embeds",
        "temperature",
        "top_p",
        "multi_item_delimiter_indices",
        "token_indices_to_pool",
        "_original_forward_mode",
    )
    batch = dict.fromkeys(unused) | {
        "forward_mode": ForwardMode.EXTEND,
        "return_logprob": False,
        "capture_hidden_mode": CaptureHiddenMode.NULL,
        "extend_seq_lens": torch.tensor(ROWS),
        "extend_seq_lens_cpu": ROWS,
        "is_prefill_only": False,
        "attn_tp_sequence_sharded": False,
    }
    return SimpleNamespace(**batch | changes)


def test_the_last_row_of_every_request():
    rows, metadata = last_rows(prefill(), sum(ROWS))
    assert rows.tolist() == [2, 3, 7]
    assert metadata.extend_seq_lens.tolist() == [1, 1, 1]


LOGPROBS = {"return_logprob": True, "top_logprobs_nums": [0] * 3, "token_ids_logprobs": [None] * 3}


def test_with_log_probabilities_of_the_answer_alone():
    rows, _ = last_rows(prefill(**LOGPROBS, extend_logprob_start_lens_cpu=ROWS), sum(ROWS))
    assert rows.tolist() == [2, 3, 7]


@pytest.mark.parametrize(
    "changes",
    [
        {"forward_mode": ForwardMode.DECODE},
        {"forward_mode": ForwardMode.TARGET_VERIFY},
        {"_original_forward_mode": ForwardMode.IDLE},
        {"capture_hidden_mode": CaptureHiddenMode.FULL},
        {"multi_item_delimiter_indices": [torch.tensor([1])]},
        {"token_indices_to_pool": [torch.tensor([1])]},
        LOGPROBS | {"extend_logprob_start_lens_cpu": [3, 1, 2]},
        {"extend_seq_lens_cpu": [3, 1, 3]},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_all_rows_where_others_may_be_read(changes):
    batch = prefill(**changes)
    assert last_rows(batch, sum(ROWS)) == (None, batch)


def test_all_rows_in_a_captured_graph():
    batch = prefill()
    with prefill_graph_scope(full_graph=False):
        assert last_rows(batch, sum(ROWS)) == (None, batch)


def test_plan_of_the_last_rows():
    lengths, slots = torch.tensor([3, 9], dtype=torch.int32), torch.zeros(2, 9, dtype=torch.int32)
    start = torch.tensor([0, 3, 5], dtype=torch.int32)
    plan = only_last_rows(PagedBatch(start, lengths, lengths * 0, torch.arange(2), slots, 3, 9), 1024)
    assert plan.query_start.tolist() == [0, 1, 2] and plan.query_start.dtype == torch.int32
    assert (plan.max_query_tokens, plan.max_kv_tokens) == (1, 1024)
    assert plan.kv_lens is lengths and plan.token_slots is slots
