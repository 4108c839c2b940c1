"""Arguments about devices, kernels, graphs and what a step returns."""

from sala_sglang.plugin.argument_table.verdict import OFF, other, read, refused, tested

_GRAPHS = "serving/test_gpu.py"
_PREFILL = "attention of a prefill step runs outside the graph"

VERDICTS = (
    tested("plugin/test_server_arguments.py", "device cuda_graph_max_bs_prefill"),
    refused(
        "attention_backend prefill_attention_backend decode_attention_backend",
        "unset, `sala`, `minicpm_flashinfer`, `minicpm_flashattn`",
        "the others cannot select blocks",
    ),
    refused(
        "cuda_graph_backend_decode",
        (None, "full", "disabled"),
        "not tried; a decode step is captured as a whole",
        _GRAPHS,
    ),
    refused("cuda_graph_backend_prefill", (None, "breakable", "disabled"), _PREFILL, _GRAPHS),
    refused("cuda_graph_config", "backends as in the two arguments above", _PREFILL),
    refused("debug_cuda_graph", OFF, "it breaks decode graphs at attention, which was not tried"),
    refused("enable_torch_compile enable_torch_compile_debug_mode", OFF, "kernels are no operators of torch"),
    refused("enable_deterministic_inference", OFF, "sums in decode steps depend on the number of rows"),
    refused("rl_on_policy_target", (None,), "sums in decode steps depend on the number of rows"),
    refused("cpu_offload_gb", (0,), "the layers are not wrapped by SGLang's offloader"),
    refused("offload_group_size", (-1, 0), "the layers are not wrapped by SGLang's offloader"),
    refused("enable_nvidia_megakernel enable_amd_monokernel", OFF, "it replaces models that it lists"),
    refused("enable_mis", OFF, "it needs the attention backend flashinfer"),
    refused("enable_return_aux_hidden_states", OFF, "the model keeps no hidden states of inner layers"),
    refused("return_aux_hidden_state_layer_ids", (None,), "the model keeps no hidden states of inner layers"),
    refused("enable_return_routed_experts", OFF, "there are no experts"),
    refused("enable_return_indexer_topk", OFF, "selected blocks are not returned"),
    refused("kv_canary", ("none",), "it was not tried with keys that carry the mark of dense prompts"),
    refused("dllm_algorithm", (None,), "the model is autoregressive"),
    read(
        "which sizes are captured, and how; the graphs are those of the tests",
        "cuda_graph_max_bs_decode cuda_graph_bs_decode cuda_graph_bs_prefill cuda_graph_max_seq_len_prefill "
        "disable_prefill_cuda_graph disable_decode_cuda_graph disable_cuda_graph disable_cuda_graph_padding "
        "enable_profile_cuda_graph enable_cudagraph_gc",
    ),
    read("SGLang's sampler, behind the logits", "sampling_backend random_seed sampling_mask_max_tokens"),
    read(
        "SGLang's watermark, behind the logits; refused with speculative decoding", "enable_watermark watermark_config"
    ),
    read(
        "made by SGLang from watermark_config",
        "watermark_key watermark_key_b watermark_context_window watermark_mixing_probability "
        "watermark_max_probability watermark_default_enabled watermark_enforce_all",
    ),
    read("scheduler_requests.py works on the mask, which every grammar makes", "grammar_backend"),
    read(
        "of the grammar backend",
        "constrained_json_whitespace_pattern constrained_json_disable_any_whitespace "
        "constrained_json_max_whitespace_cnt disable_outlines_disk_cache",
    ),
    read("of the products of SGLang's FP8 layers", "fp8_gemm_runner_backend"),
    read("a named backend takes the place of skinny_linear", "bf16_gemm_backend"),
    read("FlashInfer is asked for FP8 products and sampling alone", "disable_flashinfer_autotune"),
    read("as disable_flashinfer_autotune", "flashinfer_autotune_skip_ops"),
    tested("models/test_layers.py", "enable_memory_saver", "frequencies come back as a buffer; tried on an H200"),
    read("weights come back from the host; tried on an H200", "enable_weights_cpu_backup"),
    read("SGLang applies them to the logits", "enable_custom_logit_processor"),
    read(
        "all rows are computed then; what is returned is behind the last norm and the division before the head",
        "enable_return_hidden_states return_hidden_states_mode",
    ),
    read("hooks on torch modules; in captured graphs they do not run", "forward_hooks enable_layerwise_nvtx_marker"),
    read(
        "hooks on torch modules, for eager steps",
        "debug_tensor_dump_output_folder debug_tensor_dump_layers debug_tensor_dump_input_file",
    ),
    other("compilation by torch", "torch_compile_max_bs"),
    other("an offloader", "offload_num_in_group offload_prefetch_step offload_mode"),
    other("n-gram embeddings", "ple_offload_embedding ple_offload_backend ple_offload_dir"),
    other("a model that denoises", "dllm_algorithm_config dllm_fdfo"),
    other("SGLang's Triton attention", "enable_lean_attention triton_attention_reduce_in_fp32"),
    other("SGLang's Triton attention", "triton_attention_num_kv_splits triton_attention_split_tile_size"),
    other("latent attention", "flashinfer_mla_disable_ragged"),
    other("NVFP4", "fp4_gemm_runner_backend prefill_kv_cache_dequant_dtype"),
    other("SGLang's fused norm: its own is fused already", "enable_fused_qk_norm_rope"),
    other(
        "an indexer",
        "dsa_prefill_backend dsa_decode_backend dsa_paged_mqa_logits_backend dsa_topk_backend dsa_triton_union "
        "enable_dsa_fused_indexer dsv4_prefill_backend dsv4_attn_backend enable_deepseek_v4_fp4_indexer "
        "cuda_graph_prefill_max_context enable_encoder_swa_bounded_replay enable_decoder_swa_bounded_replay",
    ),
    other("hidden states of inner layers", "aux_hidden_state_capture"),
    other("a canary", "kv_canary_real_data kv_canary_sweep_interval"),
    other("a draft model", "enable_draft_weights_cpu_backup"),
    other("NPU or MLX", "msprobe_dump_config mlx_enable_sampling"),
)
