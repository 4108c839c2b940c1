"""Arguments about which requests run when."""

from sala_sglang.plugin.argument_table.verdict import OFF, other, read, refused, tested

_EQUALITY = "serving/test_equality.py"

VERDICTS = (
    tested(_EQUALITY, "chunked_prefill_size max_running_requests disable_overlap_schedule enable_mixed_chunk"),
    read(
        "order and number of requests; a row's result does not depend on the others",
        "max_queued_requests max_prefill_tokens prefill_max_requests prefill_decode_interval "
        "prefill_decode_interval_min_bs schedule_policy schedule_conservativeness scheduler_recv_interval "
        "min_free_slots_delay",
    ),
    read(
        "preemption and retraction prefill again, as tests/serving/test_robustness.py does by memory",
        "enable_priority_scheduling disable_priority_preemption default_priority_value retraction_policy "
        "abort_on_priority_when_disabled schedule_low_priority_values_first priority_scheduling_preemption_threshold",
    ),
    read(
        "delays prefills, and changes no step",
        "enable_prefill_delayer prefill_delayer_max_delay_passes prefill_delayer_token_usage_low_watermark "
        "prefill_delayer_forward_passes_buckets prefill_delayer_wait_seconds_buckets prefill_delayer_queue_min_ratio "
        "prefill_delayer_max_delay_ms",
    ),
    refused(
        "enable_dynamic_chunking",
        OFF,
        "SGLang takes the time of a long prompt from that of dense ones of a chunk: chunks would shrink to a quarter",
    ),
    refused("enable_two_batch_overlap", OFF, "the backends have one plan per forward pass"),
    refused("enable_single_batch_overlap", OFF, "it overlaps experts, which there are none of"),
    refused("enable_pdmux", OFF, "the model has no forward_split_prefill"),
    other("earlier versions of SGLang", "num_continuous_decode_steps"),
    other("two batches that overlap", "tbo_token_distribution_threshold"),
    other("prefill beside decode on one GPU", "pdmux_config_path sm_group_num"),
)
