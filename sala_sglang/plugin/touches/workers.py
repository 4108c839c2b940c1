"""Touches of the processes with the model: ``worker.py`` and what it registers, ``attention/`` and ``models/``."""

from sala_sglang.plugin.touches.touch import AFTER, AROUND, OFFICIAL, PRIVATE, REGISTRY, SUBCLASS, WORKER, Touch

_RESULTS = "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"

_BACKENDS_AND_POOLS = (
    Touch(
        target="sglang.srt.layers.attention.attention_registry.register_attention_backend",
        how=REGISTRY,
        process=WORKER,
        why="the factory of sala, which checks that configuration, model and pool are ours",
        until=OFFICIAL,
    ),
    Touch(
        target="sglang.srt.layers.attention.base_attn_backend.AttentionBackend",
        how=SUBCLASS,
        process=WORKER,
        names=(
            "forward_decode",
            "forward_extend",
            "get_cuda_graph_seq_len_fill_value",
            "init_cuda_graph_state",
            "init_forward_metadata",
            "init_forward_metadata_in_graph",
            "shared_read_ends",
            "verify_mask",
        ),
        why="the backend of the sparse layers",
        until=OFFICIAL,
    ),
    Touch(
        target="sglang.srt.layers.attention.hybrid_linear_attn_backend.MambaAttnBackendBase",
        how=SUBCLASS,
        process=WORKER,
        names=(
            "_translate_mamba_indices",
            "forward_decode",
            "forward_extend",
            "init_forward_metadata",
            "init_forward_metadata_in_graph",
            "init_forward_metadata_out_graph",
        ),
        why="the backend of the lightning layers: state slots and their buffers under CUDA graphs are SGLang's",
        until=OFFICIAL,
        upstream="sgl-project/sglang#21983",
    ),
    Touch(
        target="sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator._hybrid_full_attention_pool_class",
        how=AFTER,
        process=WORKER,
        why="the KV pool of the sparse layers holds compressed keys too",
        until="a plugin can name the pool class of a hybrid model",
    ),
    Touch(
        target="sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size",
        how=AFTER,
        process=WORKER,
        why="compressed keys are counted when the pool is sized",
        until="SGLang asks the pool class for the bytes of a token",
    ),
    Touch(
        target="sglang.srt.mem_cache.memory_pool.MHATokenToKVPool",
        how=SUBCLASS,
        process=WORKER,
        names=(
            "_clear_buffers",
            "_create_buffers",
            "_get_key_buffer",
            "_get_value_buffer",
            "_init_kv_copy_and_warmup",
            "get_cpu_copy",
            "get_kv_size_bytes",
            "host_pool_decls",
            "load_cpu_copy",
            "set_kv_buffer",
        ),
        why="compressed keys are allocated, counted, saved and restored with the pages they belong to; FP8 has a scale "
        "for each KV head; drafts are chains, so nothing is moved",
        until="a pool can have a companion of so many bytes per page, and scales by head",
    ),
)

_REQUESTS = (
    Touch(
        target="sglang.srt.managers.scheduler.Scheduler.handle_generate_request",
        how=AROUND,
        process=WORKER,
        why="values that tensors cannot take would end the scheduler, through whatever entry point they come",
        until="SGLang's scheduler survives every message",
    ),
    Touch(
        target="sglang.srt.managers.scheduler.Scheduler._create_generation_req",
        how=PRIVATE,
        process=WORKER,
        why="what is refused there is answered by way of a request that never runs",
        until="SGLang's scheduler survives every message",
    ),
    Touch(
        target="sglang.srt.managers.scheduler.Scheduler._add_request_to_queue",
        how=PRIVATE,
        process=WORKER,
        why="the same request has to be queued",
        until="SGLang's scheduler survives every message",
    ),
)

_PREFIX_CACHE = (
    Touch(
        target="sglang.srt.mem_cache.common._req_radix_key",
        how=AROUND,
        process=WORKER,
        why="keys of dense prompts carry a mark, so that sparse ones never reuse their pages, nor the other way round",
        until="a model can add to the key of a request, from some token on",
    ),
    Touch(
        target="sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.checkpoint_into_tree",
        how=AROUND,
        process=WORKER,
        why="tells which request's tokens are being inserted",
        until="a model can add to the key of a request, from some token on",
    ),
    Touch(
        target="sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.insert",
        how=AROUND,
        process=WORKER,
        why="the same mark in the keys that are inserted",
        until="a model can add to the key of a request, from some token on",
    ),
    Touch(
        target="sglang.srt.managers.scheduler.Scheduler._prefetch_kvcache",
        how=AROUND,
        process=WORKER,
        why="tells which request's prefix is being looked for in storage",
        until="SGLang asks storage for the keys of the tree, as it does for the bigrams of EAGLE",
        upstream="sgl-project/sglang#19570",
    ),
    Touch(
        target="sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.prefetch_from_storage",
        how=AROUND,
        process=WORKER,
        why="the same mark in the keys that are looked for in storage",
        until="SGLang asks storage for the keys of the tree, as it does for the bigrams of EAGLE",
        upstream="sgl-project/sglang#19570",
    ),
    Touch(
        target="sglang.srt.managers.schedule_batch.ScheduleBatch.prepare_for_extend",
        how=AROUND,
        process=WORKER,
        why="a retracted request stays dense or sparse by its prompt, not by what it has generated since",
        until="orig_seq_lens holds the prompt's length",
    ),
    Touch(
        target="sglang.srt.managers.schedule_policy.PrefillAdder.__init__",
        how=AROUND,
        process=WORKER,
        why="chunks end where pages end, or a snapshot would be paired with a state of some tokens more",
        until="SGLang puts snapshots where pages end, as it does with decode context parallelism",
        upstream="sgl-project/sglang#39115",
    ),
    Touch(
        target="sglang.srt.managers.schedule_batch.ScheduleBatch._mamba_radix_cache_v2_req_prepare_for_extend",
        how=AROUND,
        process=WORKER,
        why="snapshots are thousands of tokens apart: each takes as much memory as thousands of tokens",
        until="SGLang has an option for the distance of snapshots in a prompt",
        upstream="sgl-project/sglang#30369",
    ),
)

_SCHEDULER = (
    Touch(
        target="sglang.srt.managers.schedule_policy.PrefillAdder.add_one_req",
        how=AROUND,
        process=WORKER,
        why="a prefill batch of token ids and embeddings together fails",
        until="SGLang keeps them apart",
    ),
    Touch(
        target="sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo._apply_post_grammar_logits_transforms",
        how=AROUND,
        process=WORKER,
        why="where masks leave no token, probabilities would be NaN and sampling would end the server",
        until="SGLang samples any token there, or ends the request",
    ),
    Touch(
        target=f"{_RESULTS}._apply_prefill_grammar",
        how=AROUND,
        process=WORKER,
        why="a grammar that takes no token any more is the client's error, not the server's",
        until="SGLang answers it with status 400",
    ),
    Touch(
        target=f"{_RESULTS}._accept_grammar_tokens",
        how=AROUND,
        process=WORKER,
        why="the same for tokens after the first",
        until="SGLang answers it with status 400",
    ),
)

_MODEL = (
    Touch(
        target="sglang.srt.layers.quantization.base_config.QuantizeMethodBase",
        how=SUBCLASS,
        process=WORKER,
        names=("apply", "create_weights", "process_weights_after_loading"),
        when="Hopper, SALA_PATHS or SALA_OWN_PRODUCTS",
        why="what the two methods below share, and a third around SGLang's own for quantised layers",
        until="stays: SGLang's layers are extended this way",
    ),
    Touch(
        target="sglang.srt.layers.quantization.unquant.UnquantizedLinearMethod",
        how=SUBCLASS,
        process=WORKER,
        names=("apply", "create_weights", "process_weights_after_loading"),
        when="Hopper; quantised layers on machines without CUDA",
        why="products of few rows use skinny_linear, and those of quantised layers their dequantised weights; the "
        "model's layers get the subclass as their quant_method",
        until="stays: SGLang's layers are extended this way",
    ),
    Touch(
        target="sglang.srt.layers.quantization.unquant.UnquantizedEmbeddingMethod",
        how=SUBCLASS,
        process=WORKER,
        names=("apply",),
        when="Hopper",
        why="the same for the head that makes logits",
        until="stays: SGLang's layers are extended this way",
    ),
    Touch(
        target="sglang.srt.layers.quantization.base_config.QuantizationConfig",
        how=SUBCLASS,
        process=WORKER,
        names=(
            "from_config",
            "get_config_filenames",
            "get_min_capability",
            "get_name",
            "get_quant_method",
            "get_scaled_act_names",
            "get_supported_act_dtypes",
        ),
        when="the checkpoint is quantised",
        why="gives every linear layer the method of its scheme, by the plan of the checkpoint",
        until="stays: SGLang's layers are extended this way",
    ),
    Touch(
        target="sglang.srt.model_executor.model_runner_components.weight_updater"
        "._unsupported_derived_weight_cache_error",
        how=AROUND,
        process=WORKER,
        why="refuses to replace quantised weights, which have another layout by then: SGLang would fail in the middle, "
        "and again when it rolls back, and end",
        until="SGLang restores the layout, or refuses",
    ),
    Touch(
        target="sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater"
        ".init_weights_update_group",
        how=AROUND,
        process=WORKER,
        when="--pp-size",
        why="ranks of two stages would come with the same number and wait for ever",
        until="SGLang numbers the ranks of all stages",
    ),
    Touch(
        target="sglang.srt.model_executor.forward_batch_info.ForwardBatch._original_forward_mode",
        how=PRIVATE,
        process=WORKER,
        why="the last layer skips rows, but not of an idle rank that pretends to have some",
        until="the batch says so under a public name",
    ),
)

TOUCHES = (*_BACKENDS_AND_POOLS, *_REQUESTS, *_PREFIX_CACHE, *_SCHEDULER, *_MODEL)
