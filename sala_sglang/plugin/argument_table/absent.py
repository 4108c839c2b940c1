"""Arguments about what this model does not have: experts, images."""

from sala_sglang.plugin.argument_table.verdict import OFF, other, refused

_NO_EXPERTS = "there are no experts"

VERDICTS = (
    refused("moe_a2a_backend", ("none",), _NO_EXPERTS),
    refused("elastic_ep_backend ep_join_mode kt_weight_path", (None,), _NO_EXPERTS),
    refused("enable_eplb enable_elastic_expert_backup enable_paged_experts enable_waterfill", OFF, _NO_EXPERTS),
    refused("expert_distribution_recorder_mode", (None,), _NO_EXPERTS),
    refused("enable_prefix_mm_cache enable_mm_global_cache", OFF, "the model reads text alone"),
    other(
        "experts",
        "moe_runner_backend enable_fused_moe_sum_all_reduce enable_w4a4_mxfp4_megamoe deepep_v2_mode "
        "flashinfer_mxfp4_moe_precision deepep_mode fuseep_mode deepep_dispatcher_output_dtype "
        "ep_num_redundant_experts ep_dispatch_algorithm init_expert_location eplb_algorithm "
        "eplb_rebalance_num_iterations eplb_rebalance_layers_per_chunk eplb_min_rebalancing_utilization_threshold "
        "expert_distribution_recorder_buffer_size expert_balancedness_report_mode deepep_config mooncake_ib_device "
        "elastic_ep_scale_timeout disable_flashinfer_cutlass_moe_fp4_allgather disable_shared_experts_fusion "
        "enforce_shared_experts_fusion kt_method kt_cpuinfer kt_threadpool_count kt_num_gpu_experts "
        "kt_max_deferred_experts_per_token flashinfer_a2a_dispatch_type paged_experts_num_resident",
    ),
    other(
        "images and sound",
        "enable_multimodal mm_attention_backend enable_broadcast_mm_inputs_process mm_enable_dp_encoder "
        "mm_process_config mm_processor_worker_num mm_io_worker_num allowed_media_domains media_url_max_file_size_mb "
        "mm_preprocess_cache_size_mb trust_mm_content_hashes limit_mm_data_per_request image_processor_backend "
        "mm_global_cache_backend disable_fast_image_processor mm_feature_transport "
        "enable_precise_embedding_interpolation encoder_transfer_backend encoder_urls encoder_bootstrap_port "
        "encoder_register_urls enable_adaptive_dispatch_to_encoder",
    ),
)
