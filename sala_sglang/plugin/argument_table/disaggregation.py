"""Arguments about prefill on one server and decode on another; what they exclude says plugin/disaggregation.py."""

from sala_sglang.plugin.argument_table.verdict import OFF, read, refused, tested

_PAIR, _LIMITS = "serving/test_disaggregation.py", "plugin/test_server_arguments.py"

VERDICTS = (
    tested(
        _PAIR,
        "disaggregation_mode disaggregation_bootstrap_port disaggregation_decode_enable_radix_cache "
        "disaggregation_decode_extra_slots num_reserved_decode_tokens",
        "compressed keys are made anew where a prompt arrives",
    ),
    refused(
        "disaggregation_transfer_backend",
        "`mooncake`, `mooncake_tcp`",
        "nixl was not tried, the others move nothing, or are written for other hardware",
        _PAIR,
    ),
    refused("enable_pd_role_switch", OFF, "a role does not change: start another server"),
    refused("disaggregation_decode_allocation_policy", ("early",), "the other policy was not tried", _LIMITS),
    refused(
        "disaggregation_decode_enable_offload_kvcache", OFF, "it writes pages without their compressed keys", _LIMITS
    ),
    refused("disaggregation_decode_host_receive_threshold", (1,), "SGLang receives states on the GPU alone", _LIMITS),
    refused(
        "disaggregation_decode_retraction_backup",
        (None, "cpu_tensor", "none"),
        "SGLang's host pool for retracted requests keeps no states",
        _LIMITS,
    ),
    read("which network cards the backends take", "disaggregation_ib_device"),
    read(
        "digests of pages and states, on GPUs; a request whose digest differs fails",
        "disaggregation_enable_kv_checksum",
    ),
    read("when SGLang looks for what has arrived", "disaggregation_decode_polling_interval"),
    read("prefills before the other server has answered, and again if that takes long", "optimistic_prefill_attempts"),
)
