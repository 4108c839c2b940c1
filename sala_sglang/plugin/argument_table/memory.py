"""Arguments about pools, the prefix cache and its copies."""

from sala_sglang.plugin.argument_table.verdict import OFF, other, read, refused, tested

_FP8 = "serving/test_fp8_cache.py"
_HOST, _FILES = "serving/test_host_cache.py", "serving/test_storage.py"
_SESSIONS = "a session keeps its pages when its prompt turns from dense to sparse"

VERDICTS = (
    tested("serving/test_gpu.py", "mem_fraction_static"),
    tested("serving/test_robustness.py", "max_total_tokens"),
    tested("serving/test_prefix_cache.py", "max_mamba_cache_size"),
    tested("serving/test_equality.py", "disable_radix_cache"),
    tested(_HOST, "enable_hierarchical_cache hicache_ratio hicache_write_policy"),
    refused("page_size", "the sparse block, 64 as released", "a page holds the compressed keys of a block"),
    refused(
        "kv_cache_dtype",
        "`auto`, `fp8_e4m3` (GPUs from compute capability 8.9 on, and CPUs); of a bfloat16 model `bfloat16`, `bf16`",
        "keys and values have the model's dtype, or e4m3 with a scale for each KV head",
        _FP8,
    ),
    refused("hicache_mem_layout", "`page_first`, `page_first_direct`", "SGLang copies states in no other", _HOST),
    refused("hicache_io_backend", "`kernel`, `direct`; on a CPU `direct`", "SGLang copies states with no other", _HOST),
    refused(
        "hicache_storage_backend",
        "unset; with `enable_hierarchical_cache` `file`",
        "others have no checksums, or no names that keep weights and dtypes apart, or lose compressed keys",
        _FILES,
    ),
    tested(_FILES, "hicache_storage_prefetch_policy file_storage_path"),
    refused("hicache_host_memory_mode", ("cache",), "the other mode was not tried with compressed keys"),
    refused("enable_unified_memory", OFF, "pages and states come from separate pools"),
    refused("enable_page_major_kv_layout", OFF, "the kernels read one buffer per layer"),
    refused("enable_lmcache", OFF, "LMCache copies no compressed keys"),
    refused("enable_flexkv", OFF, "FlexKV copies no compressed keys"),
    refused("enable_unified_cache_external_linker", OFF, "external linkers copy no compressed keys"),
    refused("radix_cache_backend", (None,), "other caches know neither states nor compressed keys"),
    refused("enable_hisparse", OFF, "it offloads pages by an indexer of its own"),
    refused("enable_streaming_session", OFF, _SESSIONS),
    refused("prefill_only_disable_kv_cache", OFF, "it serves embeddings, which this model has none of"),
    refused("enable_int8_mamba_checkpoint", OFF, "state snapshots are float32"),
    refused("mamba_ssm_dtype", (None, "float32"), "states are float32"),
    refused("enable_mamba_cache_stochastic_rounding", OFF, "states are float32"),
    refused(
        "mamba_radix_cache_strategy",
        ("auto", "extra_buffer", "extra_buffer_lazy"),
        "the others keep no snapshots where pages have more than one token",
    ),
    refused(
        "linear_attn_backend",
        ("triton",),
        "lightning layers have kernels of their own, and SGLang keeps no snapshots for the others",
    ),
    refused(
        "linear_attn_decode_backend linear_attn_prefill_backend linear_attn_verify_backend",
        (None, "triton"),
        "lightning layers have kernels of their own",
    ),
    refused("mamba_backend", ("triton",), "lightning layers have kernels of their own"),
    refused("enable_linear_replayssm enable_linear_replayssm_spec", OFF, "lightning layers have one state, no window"),
    read("order of eviction in SGLang's tree, which knows no token ids there", "radix_eviction_policy"),
    read("as radix_eviction_policy", "radix_eviction_policy_config _radix_eviction_policy_explicitly_set"),
    read("counts sessions at nodes of the tree, whose keys are marked as without it", "enable_session_radix_cache"),
    read("size of the host pools; compressed keys come on top", "hicache_size hicache_host_memory_fraction"),
    read(
        "when SGLang asks for a file again, and what it says about the directory",
        "hicache_storage_prefetch_retry_poll_interval hicache_storage_prefetch_retry_max_attempts "
        "hicache_storage_backend_extra_config",
    ),
    read("division of memory between pages and states", "mamba_full_memory_ratio"),
    read("which snapshots are kept in SGLang's tree", "mamba_max_states_per_path mamba_track_interval"),
    read("derived by SGLang from the strategy and the model's entry", "uses_mamba_radix_cache"),
    other(
        "a foreign cache",
        "lmcache_config_file flexkv_config_file hisparse_config unified_cache_external_linker_backend "
        "unified_cache_external_linker_config enable_linker_mla_dedup",
    ),
    other("rounded states", "mamba_cache_philox_rounds int8_mamba_ckpt_size linear_replayssm_cache_len"),
    other(
        "a sliding window",
        "swa_full_tokens_ratio disable_hybrid_swa_memory swa_prefix_tails _swa_full_tokens_ratio_explicitly_set",
    ),
    other("pages of an NPU", "c128_page_size"),
    other("latent attention", "disable_chunked_prefix_cache"),
)
