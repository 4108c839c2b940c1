"""The ledger: every place where this package reaches into SGLang, why, and when the touch can go.

``sala-sglang doctor --touches`` prints it, and ``docs/reference/compatibility.md`` is made from it. A hook whose target
is not listed here is refused when it is registered.
"""

from dataclasses import dataclass

EVERY, FRONTEND, WORKER = "every process", "HTTP server", "workers"


@dataclass(frozen=True)
class Touch:
    """One touch on SGLang.

    target: dotted path of what is touched, or the name of a variable. how: the means. process: where it happens, EVERY,
    FRONTEND or WORKER. when: the condition under which it happens, empty for always. why: what would be wrong without
    it. upstream: issue or pull request of SGLang, empty where none is known. until: what must change before it can go.
    """

    target: str
    how: str
    process: str
    why: str
    until: str
    when: str = ""
    upstream: str = ""


_AROUND, _AFTER, _REGISTRY, _VARIABLE, _REPLACED = "hook around", "hook after", "registry", "variable", "replaced"
_NO_CUDA, _HIERARCHICAL, _LORA = "machines without CUDA", "--enable-hierarchical-cache", "--enable-lora"
_OFFICIAL = "stays: this is how SGLang is extended"


def _hooks(process: str, touches: dict[str, tuple[str, str]], how: str = _AROUND, when: str = "") -> list[Touch]:
    """Touches of one kind, from target to why and until."""
    return [Touch(target, how, process, why, until, when) for target, (why, until) in touches.items()]


_REGISTRIES = {
    "sglang.srt.utils.hf_transformers.common._CONFIG_REGISTRY": (
        "config.json is read by our class, which refuses what cannot be served; SGLang's would lead to its own backend",
        "SGLang lets a plugin name the configuration class of a model type",
    ),
    "transformers.AutoConfig": ("the same for what reads the configuration through transformers", _OFFICIAL),
    "sglang.srt.configs.linear_attn_model_registry.register_linear_attn_model": (
        "names the backend of the lightning layers, and that the prefix cache may take snapshots of their states",
        _OFFICIAL,
    ),
    "sglang.srt.arg_groups.choices.add_attention_backend_choices": ("adds the backend's name, sala", _OFFICIAL),
    "sglang.srt.arg_groups.model_override_base._MODEL_OVERRIDE_FNS": (
        "the published backend names lead to sala; SGLang's own entry would turn the prefix cache off",
        "SGLang lets a plugin replace the overrides of an architecture",
    ),
    "sglang.srt.arg_groups.resolution_hooks.register_resolution_hook": (
        "refusals, page size, default sizes of prefill graphs, and the check that nothing overrode the backend",
        _OFFICIAL,
    ),
}
_FRONTEND_HOOKS = {
    "fastapi.routing.solve_dependencies": (
        "validators of SGLang's protocol fail with an internal error on bodies of an unexpected shape",
        "SGLang answers them with status 400",
    ),
    "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat._convert_to_internal_request": (
        "what fails while a chat request is read counts as the client's error",
        "SGLang answers it with status 400",
    ),
    "sglang.srt.entrypoints.openai.serving_completions.OpenAIServingCompletion._convert_to_internal_request": (
        "what fails while a completion request is read counts as the client's error",
        "SGLang answers it with status 400",
    ),
    "sglang.srt.managers.io_struct.GenerateReqInput.normalize_batch_and_arguments": (
        "empty lists and numbers of samples without a bound are refused",
        "SGLang refuses them",
    ),
    "sglang.srt.sampling.sampling_params.get_max_seq_length": (
        "a stop_regex that cannot be parsed is refused",
        "SGLang refuses it",
    ),
    "sglang.srt.managers.tokenizer_manager.TokenizerManager._init_req_state": (
        "lists shorter than the batch are refused with their names",
        "SGLang refuses them",
    ),
    "sglang.srt.managers.tokenizer_manager.TokenizerManager._create_tokenized_object": (
        "what the scheduler cannot decode, or its tensors cannot take, would end the server: it is refused before",
        "SGLang's scheduler survives every message",
    ),
}
_WORKER_HOOKS = {
    "sglang.srt.managers.scheduler.Scheduler.handle_generate_request": (
        "values that tensors cannot take would end the scheduler, through whatever entry point they come",
        "SGLang's scheduler survives every message",
    ),
    "sglang.srt.mem_cache.common._req_radix_key": (
        "keys of dense prompts carry a mark, so that sparse ones never reuse their pages, nor the other way round",
        "SGLang lets a model add to the key of a request",
    ),
    "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.checkpoint_into_tree": (
        "tells which request's tokens are being inserted",
        "SGLang lets a model add to the key of a request",
    ),
    "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.insert": (
        "the same mark in the keys that are inserted",
        "SGLang lets a model add to the key of a request",
    ),
    "sglang.srt.managers.schedule_batch.ScheduleBatch.prepare_for_extend": (
        "a retracted request stays dense or sparse by its prompt, not by what it has generated since",
        "SGLang keeps the prompt's length in orig_seq_lens",
    ),
    "sglang.srt.managers.schedule_policy.PrefillAdder.__init__": (
        "chunks end where pages end, or a snapshot would be paired with a state of some tokens more",
        "SGLang cuts mixed chunks at pages where a model has recurrent states",
    ),
    "sglang.srt.managers.schedule_batch.ScheduleBatch._mamba_radix_cache_v2_req_prepare_for_extend": (
        "snapshots are thousands of tokens apart: each takes as much memory as thousands of tokens",
        "SGLang has an option for the distance",
    ),
    "sglang.srt.managers.schedule_policy.PrefillAdder.add_one_req": (
        "a prefill batch of token ids and embeddings together fails",
        "SGLang keeps them apart",
    ),
    "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo._apply_post_grammar_logits_transforms": (
        "where masks leave no token, probabilities would be NaN and sampling would end the server",
        "SGLang samples any token there, or ends the request",
    ),
    "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
    "._apply_prefill_grammar": (
        "a grammar that takes no token any more is the client's error, not the server's",
        "SGLang answers it with status 400",
    ),
    "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
    "._accept_grammar_tokens": (
        "the same for tokens after the first",
        "SGLang answers it with status 400",
    ),
}
_POOL_HOOKS = {
    "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator._hybrid_full_attention_pool_class": (
        "the KV pool of the sparse layers holds compressed keys too",
        "SGLang lets a plugin name the pool class of a hybrid model",
    ),
    "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size": (
        "compressed keys are counted when the pool is sized",
        "SGLang asks the pool class for the bytes of a token",
    ),
}
_CPU_HOOKS = {
    "torch.Tensor.pin_memory": ("pinning needs a driver", "SGLang pins only where there is an accelerator"),
    "sglang.srt.arg_groups.mamba_hook._platform_supports_mamba_cache_extra_buffer": (
        "snapshots of recurrent states are plain tensor writes on a CPU",
        "SGLang allows them there",
    ),
    "sglang.srt.distributed.parallel_state.GroupCoordinator.__init__": (
        "NCCL's communicator can only live on a GPU",
        "SGLang leaves it out on a CPU",
    ),
    "sglang.srt.configs.update_config.adjust_config_with_unaligned_cpu_tp": (
        "SGLang pads head counts that ranks do not divide; this model replicates KV heads instead",
        "SGLang lets a model keep its head counts",
    ),
}
_HIERARCHICAL_HOOKS = {
    "sglang.srt.mem_cache.pool_host.mamba.MambaPoolHost._copy_tensor_pf_lf": (
        "copying the empty convolution part of a state to the device never ends",
        "SGLang skips empty parts",
    ),
    "sglang.srt.mem_cache.pool_host.mamba.MambaPoolHost._copy_tensor_all_layers_lf_pf": (
        "copying the empty convolution part of a state to the host never ends",
        "SGLang skips empty parts",
    ),
    "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.attach_storage_backend": (
        "a storage backend is asked for token ids without the mark of dense prompts",
        "SGLang asks it for the keys of the tree",
    ),
}
_LORA_HOOKS = {
    "sglang.srt.lora.utils.get_normalized_target_modules": (
        "q, k, v and gate are one layer here, whose name SGLang does not know",
        "SGLang lets a model name its merged layers",
    ),
    "sglang.srt.lora.utils.auto_detect_lora_target_modules": (
        "SGLang leaves layers out of all-linear whose names it does not know",
        "SGLang lets a model name its merged layers",
    ),
    "sglang.srt.lora.lora_manager.LoRAManager.validate_new_adapter": (
        "SGLang loads adapters and leaves out biases, whole layers and single rows without a word",
        "SGLang refuses them",
    ),
    "sglang.srt.lora.lora.LoRAAdapter._normalize_weights": (
        "stacks the tensors as this model's layers are, KV heads copied, ranks and factors of single layers kept",
        "SGLang lets a model stack them",
    ),
}
_UNPINNED = {
    f"sglang.srt.lora.{module}.torch": (
        "tables of LoRA are pinned, which needs a driver",
        "SGLang pins only where there is an accelerator",
    )
    for module in ("layers", "backend.torch_backend")
}
_HOST_COPIES = {
    f"sglang.srt.mem_cache.{module}.{name}": (
        "SGLang's library has copies between pools and host for GPUs only",
        "SGLang copies with torch on a CPU",
    )
    for module in ("memory_pool_host", "pool_host.mamba", "pool_host.mha")
    for name in ("transfer_kv_all_layer_direct_lf_pf", "transfer_kv_per_layer_direct_pf_lf")
} | {
    "sglang.srt.mem_cache.pool_host.common._cuda_host_register": (
        "host memory cannot be registered with a driver that is not there",
        "SGLang registers it only where there is an accelerator",
    ),
    "sglang.srt.mem_cache.pool_host.base.HICACHE_HOST_MEMORY_RESERVE_BYTES": (
        "10 GiB that stay free would be more than a small machine has",
        "SGLang takes a share of the machine's memory",
    ),
}

TOUCHES: tuple[Touch, ...] = (
    *_hooks(EVERY, _REGISTRIES, _REGISTRY),
    Touch(
        "SGLANG_EXTERNAL_MODEL_PACKAGE",
        _VARIABLE,
        EVERY,
        "our model class comes before SGLang's own; where the user has a package there, ours joins the registry itself",
        _OFFICIAL,
    ),
    Touch(
        "sglang.srt.server_args.ServerArgs.add_cli_args",
        _AFTER,
        EVERY,
        "adds --dense-as-sparse, which published command lines use",
        "SGLang lets a plugin add arguments",
    ),
    Touch(
        "sglang.srt.server_args.ServerArgs.from_cli_args",
        _AROUND,
        EVERY,
        "reads --dense-as-sparse, which SGLang would drop",
        "SGLang lets a plugin add arguments",
    ),
    *_hooks(EVERY, _CPU_HOOKS, when=_NO_CUDA),
    Touch(
        "SGLANG_HTTP_SERVER_APP_PATH",
        _VARIABLE,
        FRONTEND,
        "SGLang starts several processes for HTTP without its plugins; ours checks requests there too",
        "SGLang loads plugins there",
        "--tokenizer-worker-num",
    ),
    Touch(
        "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND",
        _VARIABLE,
        FRONTEND,
        "SGLang's tree in Rust is compiled against one torch; with another one servers have stopped answering",
        "SGLang's wheel checks the torch that it loads with",
        "another torch than SGLang requires",
    ),
    *_hooks(FRONTEND, _FRONTEND_HOOKS),
    Touch(
        "sglang.srt.layers.attention.attention_registry.register_attention_backend",
        _REGISTRY,
        WORKER,
        "the factory of sala, which checks configuration, model and pool",
        _OFFICIAL,
    ),
    *_hooks(WORKER, _POOL_HOOKS, _AFTER),
    *_hooks(WORKER, _WORKER_HOOKS),
    *_hooks(WORKER, _LORA_HOOKS, when=_LORA),
    *_hooks(WORKER, _UNPINNED, _REPLACED, f"{_LORA} on {_NO_CUDA}"),
    *_hooks(WORKER, _HIERARCHICAL_HOOKS, when=_HIERARCHICAL),
    *_hooks(WORKER, _HOST_COPIES, _REPLACED, f"{_HIERARCHICAL} on {_NO_CUDA}"),
)
TARGETS = frozenset(touch.target for touch in TOUCHES)
