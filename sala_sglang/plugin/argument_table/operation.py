"""Arguments about the HTTP server, tokenizers, logs and metrics."""

from sala_sglang.plugin.argument_table.verdict import OFF, other, read, refused, tested

_SERVER = "serving/test_features.py"

VERDICTS = (
    tested("serving/test_equality.py", "skip_server_warmup"),
    # testing/server.py gives these to every server.
    tested(_SERVER, "port enable_metrics decode_log_interval log_level_http sleep_on_idle"),
    tested("serving/test_http_workers.py", "tokenizer_worker_num"),
    read("the same processes as with tokenizer_worker_num, each with a listener", "enable_http_worker_reuseport"),
    refused("smg_grpc_mode grpc_mode", OFF, "its request manager bypasses plugin/http_requests.py"),
    refused("kv_events_config", (None,), "events would show the mark of dense prompts in their token ids"),
    read(
        "the listener in front of the same application",
        "host fastapi_root_path enable_http2 http2_max_concurrent_streams http2_initial_connection_window_size "
        "ssl_keyfile ssl_certfile ssl_ca_certs ssl_keyfile_password enable_ssl_refresh api_key admin_api_key",
    ),
    read(
        "the native gRPC server hands requests to the TokenizerManager, whose checks are hooked",
        "grpc_port grpc_worker_threads grpc_response_timeout_secs sidecar sidecar_args",
    ),
    read("asked for by GET, and stored as given", "served_model_name weight_version preferred_sampling_params"),
    read("requests of SGLang's own before the first of a user", "warmups"),
    read(
        "before the request is ids, or behind the tokens",
        "tokenizer_path tokenizer_mode tokenizer_backend detokenizer_worker_num skip_tokenizer_init chat_template "
        "trust_request_chat_template hf_chat_template_name completion_template default_chat_template_kwargs "
        "enable_dynamic_batch_tokenizer dynamic_batch_tokenizer_batch_size dynamic_batch_tokenizer_batch_timeout "
        "enable_tokenizer_batch_encode disable_tokenizer_batch_decode sampling_defaults allow_auto_truncate",
    ),
    tested(
        "plugin/test_server_arguments.py",
        "reasoning_parser tool_call_parser",
        "qwen3 and minicpm5 where none is named, or auto: the forms of this model's family",
    ),
    read("which tokens a thought may not contain follows from the reasoning parser", "enable_strict_thinking"),
    read("SGLang's Mamba component takes the snapshot that the shorter key can name", "strip_thinking_cache"),
    read("the Responses API calls the same generation", "tool_server enable_response_store"),
    read(
        "what answers contain, and how they are cut into events",
        "enable_cache_report return_input_ids return_output_ids stream_interval batch_notify_size "
        "stream_response_default_include_usage incremental_streaming_output",
    ),
    read(
        "logs",
        "log_level log_requests log_requests_level log_requests_format log_requests_target "
        "uvicorn_access_log_exclude_prefixes crash_dump_folder show_time_cost gc_warning_threshold_secs "
        "enable_request_time_stats_logging",
    ),
    read(
        "metrics and traces",
        "enable_metrics_for_all_schedulers load_snapshot_publish_interval tokenizer_metrics_custom_labels_header "
        "tokenizer_metrics_allowed_custom_labels extra_metric_labels bucket_time_to_first_token "
        "bucket_inter_token_latency bucket_e2e_request_latency prompt_tokens_buckets generation_tokens_buckets "
        "load_publish_endpoint enable_forward_pass_metrics forward_pass_metrics_worker_id "
        "forward_pass_metrics_ipc_name enable_trace trace_modules otlp_traces_endpoint otlp_service_name "
        "export_metrics_to_file export_metrics_to_file_dir stat_loggers",
    ),
    refused("enable_mfu_metrics", OFF, "SGLang estimates operations of full attention in every layer"),
    read("of the process", "watchdog_timeout soft_watchdog_timeout custom_sigquit_handler gc_threshold"),
    other("SMG's gRPC server", "smg_http_sidecar_port"),
    other("speech", "asr_max_buffer_seconds asr_max_concurrent_sessions"),
)
