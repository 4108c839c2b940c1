"""Arguments about what this model does not have: experts, images, drafts, a second server for prefill."""

from sala_sglang.plugin.argument_table.verdict import OFF, other, refused

_NO_EXPERTS = "there are no experts"

VERDICTS = (
    refused("speculative_algorithm", (None,), "recurrent states cannot be rolled back to the accepted draft yet"),
    refused("decoupled_spec_role", ("null",), "recurrent states cannot be rolled back to the accepted draft yet"),
    refused("disaggregation_mode", ("null",), "compressed keys are not transferred between servers"),
    refused("enable_pd_role_switch", OFF, "compressed keys are not transferred between servers"),
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
    other(
        "speculative decoding",
        "uno_lora_path speculative_draft_model_path speculative_draft_model_revision speculative_draft_load_format "
        "speculative_num_steps speculative_eagle_topk speculative_num_draft_tokens speculative_dflash_block_size "
        "speculative_dspark_block_size speculative_dspark_sps_table_path speculative_dspark_confidence_sts_path "
        "speculative_dspark_align_verify_tokens_to_graph_tier speculative_accept_threshold_single "
        "speculative_accept_threshold_acc speculative_use_rejection_sampling speculative_token_map "
        "speculative_attention_mode speculative_draft_attention_backend speculative_dsa_topk_backend "
        "speculative_draft_kv_cache_dtype speculative_draft_window_size speculative_moe_runner_backend "
        "speculative_moe_a2a_backend speculative_enable_w4a4_mxfp4_megamoe speculative_draft_model_quantization "
        "_speculative_draft_quantization_explicitly_set enable_multi_layer_eagle speculative_adaptive "
        "speculative_adaptive_config spec_trace_dir speculative_ngram_min_bfs_breadth "
        "speculative_ngram_max_bfs_breadth speculative_ngram_match_type speculative_ngram_max_trie_depth "
        "speculative_ngram_capacity speculative_ngram_external_corpus_path speculative_ngram_external_sam_budget "
        "speculative_ngram_external_corpus_max_tokens speculative_domino_candidate_pool_size "
        "speculative_boundary_reduction speculative_use_block_verification speculative_draft_sink_size "
        "decoupled_spec_bind_endpoint decoupled_spec_connect_endpoints decoupled_spec_rank",
    ),
    other(
        "a second server for prefill or decode",
        "disaggregation_transfer_backend disaggregation_bootstrap_port disaggregation_ib_device "
        "disaggregation_decode_enable_radix_cache disaggregation_decode_enable_offload_kvcache "
        "disaggregation_decode_retraction_backup num_reserved_decode_tokens disaggregation_decode_extra_slots "
        "disaggregation_decode_polling_interval optimistic_prefill_attempts disaggregation_enable_kv_checksum "
        "disaggregation_decode_host_receive_threshold disaggregation_decode_allocation_policy",
    ),
)
