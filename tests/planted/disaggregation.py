"""Mistakes in what arrives from a server that prefills."""

from tests.planted.mistake import Mistake

_ARRIVED, _PLUGIN = "sala_sglang/attention/arrived_pages.py", "sala_sglang/plugin/disaggregation.py"
_TRANSFER_TESTS = "tests/plugin/test_transfer.py::test_what_arrives_is_what_was_sent"
_PLUGIN_TESTS = "tests/plugin/test_disaggregation.py"

DISAGGREGATION = (
    Mistake(
        "disaggregation: keys that arrive are taken for those of another request",
        _ARRIVED,
        "request_rows=torch.tensor(rows, device=device)",
        "request_rows=torch.arange(len(rows), device=device)",
        _TRANSFER_TESTS,
    ),
    Mistake(
        "disaggregation: keys in FP8 that arrive are compressed without their scales",
        _ARRIVED,
        "kv_scales=scales_of(layer, keys))",
        "kv_scales=None if scales_of(layer, keys) is None else torch.ones_like(layer.kv_scales))",
        _TRANSFER_TESTS,
    ),
    Mistake(
        "disaggregation: compressed keys of prompts that arrive are not made",
        _PLUGIN,
        "zip(rows, batch.prefix_lens, ends, strict=True)",
        "zip(rows, ends, ends, strict=True)",
        "tests/serving/test_disaggregation.py::test_answers_are_those_of_one_server",
    ),
    Mistake(
        "disaggregation: pages are sent that the prefix cache may still give back",
        _PLUGIN,
        "end_idx = min(computed, request.kv.cache_protected_len)",
        "end_idx = computed",
        "tests/plugin/test_sent_pages.py::test_pages_on_their_way_are_never_given_back",
    ),
    Mistake(
        "disaggregation: without a prefix cache nothing is sent before the last chunk",
        _PLUGIN,
        "if not last_chunk and scheduler.tree_cache.supports_prefix_sharing():",
        "if not last_chunk:",
        "tests/plugin/test_sent_pages.py::test_without_a_prefix_cache_chunks_are_sent_at_once",
    ),
    Mistake(
        "disaggregation: states of requests that arrive are not counted",
        _PLUGIN,
        "schedule.max_running_requests + get_disagg().disaggregation_decode_extra_slots",
        "schedule.max_running_requests + 0 * get_disagg().disaggregation_decode_extra_slots",
        f"{_PLUGIN_TESTS}::test_states_of_requests_that_arrive_are_counted",
    ),
    Mistake(
        "disaggregation: a server with another number of ranks is taken",
        _PLUGIN,
        "ranks = get_parallel().attn_tp_size",
        "ranks = get_parallel().attn_tp_size * 0",
        f"{_PLUGIN_TESTS}::test_layouts_are_equal_where_bytes_mean_the_same",
    ),
)
