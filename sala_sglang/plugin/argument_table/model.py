"""Arguments about the model, its weights and LoRA."""

from sala_sglang.plugin.argument_table.verdict import OFF, other, read, refused, tested

_EQUALITY, _LORA, _ROBUSTNESS = "serving/test_equality.py", "serving/test_lora.py", "serving/test_robustness.py"
_ARGUMENTS = "plugin/test_server_arguments.py"
# SGLang's loaders that hand released names to load_weights: all are iterators of DefaultModelLoader but the last.
_BY_NAME = ("auto", "safetensors", "pt", "npcache", "instanttensor", "fastsafetensors", "runai_streamer")
# Those that write into the parameters of the model itself and then call post_load_weights.
_BY_PARAMETER = ("dummy", "sharded_state", "remote_instance")

VERDICTS = (
    tested(_EQUALITY, "dtype trust_remote_code"),
    tested("serving/conftest.py", "model_path"),
    tested(_ROBUSTNESS, "context_length"),
    refused(
        "load_format",
        (*_BY_NAME, *_BY_PARAMETER),
        "the others need functions that the model lacks, name tensors otherwise, or were not tried with merged layers",
        "serving/test_weight_updates.py",
    ),
    refused(
        "quantization",
        "unset, `unquant`; on a GPU `fp8`, `w8a8_fp8`; of a quantised checkpoint its own method",
        "the others want scales that the released weights lack, or leave layers without experts in bfloat16; the "
        "formats of checkpoints are in docs/guides/quantised_weights.md",
        "plugin/test_quantization.py",
    ),
    refused("is_embedding", OFF, "the model computes logits, and no embedding of a text"),
    refused("model_impl", ("auto", "sglang"), "the others are not this package's model"),
    refused("model_config_parser", ("auto", "hf"), "config.json is read by this package's class"),
    refused("json_model_override_args", "fields of config.json with values that it could have", "they are checked too"),
    refused(
        "modelopt_quant modelopt_checkpoint_restore_path modelopt_checkpoint_save_path modelopt_export_path",
        (None,),
        "ModelOpt does not know the merged layers",
    ),
    refused("quantize_and_serve", OFF, "ModelOpt does not know the merged layers"),
    refused("weight_cache_mode", ("off",), "the cache rebuilds a model from its parameters, without its frequencies"),
    refused("startup_weight_load_mode", ("serial",), "SGLang overlaps it for models that it lists"),
    refused("language_only language_model_only encoder_only", OFF, "there is no encoder"),
    read("an option of the loader, which yields the same tensors", "model_loader_extra_config"),
    read(
        "where the files come from and how they are read; the tensors are the same",
        "revision download_dir model_checksum delete_ckpt_after_loading decrypted_config_file "
        "weight_loader_disable_mmap weight_loader_prefetch_checkpoints weight_loader_prefetch_num_threads "
        "weight_loader_drop_cache_after_load",
    ),
    read(
        "with load_format remote_instance: copies parameter by parameter between equal servers",
        "remote_instance_weight_loader_seed_instance_ip remote_instance_weight_loader_seed_instance_service_port "
        "remote_instance_weight_loader_send_weights_group_ports remote_instance_weight_loader_backend "
        "remote_instance_weight_loader_start_seed_via_transfer_engine engine_info_bootstrap_port modelexpress_config",
    ),
    read(
        "later weights go through load_weights, or a function of the user's",
        "custom_weight_loader checkpoint_engine_wait_weights_before_ready",
    ),
    read("the logits processor is SGLang's; skinny_linear leaves the head alone", "enable_fp32_lm_head"),
    read("torch.set_float32_matmul_precision", "enable_tf32_matmul"),
    tested(_LORA, "lora_paths lora_target_modules max_lora_rank max_loras_per_batch"),
    read(
        "which adapters are held, and when they are loaded; they are read by LoRAAdapter, as in the tests",
        "enable_lora enable_lora_overlap_loading max_loaded_loras lora_eviction_policy lora_strict_loading "
        "lora_drain_wait_threshold",
    ),
    read("chunks of csgmv", "max_lora_chunk_size"),
    refused("lora_backend", "`csgmv`, `triton`, `torch_native`; on a CPU `csgmv`, `torch_native`", "not tried"),
    other("speculative decoding", "decrypted_draft_config_file"),
    refused(
        "quantization_param_path",
        (None,),
        "it has one number for a layer's keys and values; scales come with the checkpoint, as k_scale and v_scale",
    ),
    other("the load format flash_rl", "rl_quant_profile"),
    other("the weight cache", "weight_cache_socket weight_cache_timeout"),
    other("an indexer", "qsa_indexer_dtype"),
    other("experts", "experts_shared_outer_loras lora_use_virtual_experts"),
)
