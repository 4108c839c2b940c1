"""Touches of speculation: ``speculation.py``, ``draft_model.py``, the two for CPUs and the package ``speculation``."""

from sala_sglang.plugin.touches.touch import (
    AFTER,
    AROUND,
    DRAFT_MODEL,
    EVERY,
    NO_CUDA,
    OFFICIAL,
    REPLACED,
    SPECULATIVE,
    SUBCLASS,
    WORKER,
    Touch,
)

_CPU = f"{SPECULATIVE}; {NO_CUDA}"
_CPU_DRAFTS = f"{DRAFT_MODEL}; {NO_CUDA}"

_ANYWHERE = (
    Touch(
        target="sglang.srt.speculative.spec_info.SpeculativeAlgorithm.create_worker",
        how=AROUND,
        process=WORKER,
        when=SPECULATIVE,
        why="drafts come from prompt and answer, as chains; SGLang's worker never looks into a prompt and drafts trees",
        until="a plugin can name the worker of an algorithm that is there already",
        upstream="sgl-project/sglang#37794",
    ),
    Touch(
        target="sglang.srt.speculative.base_spec_worker.BaseSpecWorker",
        how=SUBCLASS,
        process=WORKER,
        names=("clear_cache_pool", "draft_worker", "init_cuda_graphs", "target_worker"),
        when=SPECULATIVE,
        why="the worker of these chains, which also captures steps of one row per request",
        until="stays: SGLang's workers are made this way",
    ),
    Touch(
        target="sglang.srt.layers.attention.hybrid_linear_attn_backend.HybridLinearAttnBackend",
        how=SUBCLASS,
        process=WORKER,
        names=("update_mamba_state_after_mtp_verify",),
        why="states after a verify step are made from its rows, and not chosen among states of every row",
        until=OFFICIAL,
    ),
    Touch(
        target="sglang.srt.mem_cache.kv_cache_configurator._pd_prefill_skips_mamba_spec_state",
        how=AROUND,
        process=WORKER,
        when=SPECULATIVE,
        why="a state per row of a verify step would take 48 MiB each",
        until="SGLang asks the attention backend whether it wants them",
    ),
    Touch(
        target="sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator._handle_max_mamba_cache",
        how=AROUND,
        process=WORKER,
        when=SPECULATIVE,
        why="memory for k and v of the rows of a verify step",
        until="SGLang asks the attention backend how much it needs",
    ),
)


_DRAFT_MODELS = (
    Touch(
        target="sglang.srt.configs.model_config.ModelConfig._derive_context_length",
        how=AROUND,
        process=EVERY,
        when=DRAFT_MODEL,
        why="a draft model that was trained to a shorter context than the served one is refused, and one in another "
        "dtype reads hidden states that it cannot multiply",
        until="SGLang lets a draft model go on behind the length it was trained to, in the served model's dtype",
    ),
    Touch(
        target="sglang.srt.models.llama_eagle3.LlamaForCausalLMEagle3.load_weights",
        how=AROUND,
        process=WORKER,
        when=DRAFT_MODEL,
        why="a head whose checkpoint lacks tensors is served with whatever is in memory",
        until="SGLang refuses such checkpoints",
    ),
    Touch(
        target=(
            "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager._select_runners"
        ),
        how=AROUND,
        process=WORKER,
        when=DRAFT_MODEL,
        why="new weights of the served model are written into the draft model too, where names are the same",
        until="SGLang updates models of other checkpoints only where a request names them",
    ),
    Touch(
        target="sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator.__init__",
        how=AFTER,
        process=WORKER,
        names=("_cell_size",),
        when=DRAFT_MODEL,
        why="keys and values of the draft model are counted as if its layers were as wide as this model's",
        until="SGLang counts them by the draft model's configuration, as it does for DFLASH",
    ),
)


def _replaced(target: str, why: str, when: str = _CPU) -> Touch:
    until = "SGLang has it in torch, outside its CPU engine"
    return Touch(target=target, how=REPLACED, process=WORKER, when=when, why=why, until=until)


def _draft_backend(method: str, why: str) -> Touch:
    return Touch(
        target=f"sglang.srt.speculative.draft_utils.DraftBackendFactory.{method}",
        how=AROUND,
        process=WORKER,
        when=_CPU_DRAFTS,
        why=why,
        until="SGLang has steps of draft models for its attention in torch",
    )


_ON_A_CPU = (
    _replaced("sglang.srt.mem_cache.allocation.assign_req_to_token_pool_func", "its kernel is for GPUs"),
    _replaced("sglang.srt.mem_cache.allocation.get_last_loc", "it takes a kernel for GPUs for backends not its own"),
    _replaced("sglang.srt.speculative.eagle_utils.verify_tree_greedy_func", "its kernel is for GPUs"),
    _replaced("sglang.srt.speculative.eagle_utils.tree_speculative_sampling_target_only", "its kernel is for GPUs"),
    _replaced("sglang.srt.speculative.eagle_utils.top_k_renorm_prob", "it is flashinfer's, for GPUs"),
    _replaced("sglang.srt.speculative.eagle_utils.top_p_renorm_prob", "it is flashinfer's, for GPUs"),
)

_DRAFT_MODELS_ON_A_CPU = (
    _draft_backend("create_decode_backend", "its attention in torch knows no steps of a draft model"),
    _draft_backend("create_draft_extend_backend", "its attention in torch serves accepted rows as they are"),
    Touch(
        target="sglang.srt.mem_cache.memory_pool.MHATokenToKVPool._init_kv_copy_and_warmup",
        how=AROUND,
        process=WORKER,
        when=_CPU_DRAFTS,
        why="it compiles a kernel for GPUs that moves keys and values of trees",
        until="SGLang compiles it where it is used",
    ),
    Touch(
        target="sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend",
        how=SUBCLASS,
        process=WORKER,
        names=("_run_sdpa_forward_decode", "init_forward_metadata"),
        when=_CPU_DRAFTS,
        why="a step of the draft model attends to the tokens of the steps before it as well",
        until="SGLang has steps of draft models for its attention in torch",
    ),
    *(
        _replaced(target, "its kernel is for GPUs", _CPU_DRAFTS)
        for target in (
            "sglang.kernels.ops.speculative.cache_locs.assign_extend_cache_locs_func",
            "sglang.srt.speculative.eagle_utils.build_tree_kernel_efficient_func",
            "sglang.srt.speculative.eagle_worker_common.assign_draft_cache_locs_contiguous_func",
            "sglang.srt.speculative.eagle_worker_common.fill_bonus_tokens_func",
        )
    ),
    _replaced(
        "sglang.srt.layers.rotary_embedding.base._is_cpu",
        "without a GPU it takes the rotation of a draft model's rows from vLLM",
        _CPU_DRAFTS,
    ),
    _replaced(
        "sglang.srt.speculative.eagle_worker_common._is_cpu",
        "without a GPU it plans slots that one pool does not need",
        _CPU_DRAFTS,
    ),
    _replaced(
        "sglang.srt.speculative.eagle_worker_v2._is_cpu",
        "without a GPU it captures CUDA graphs of the draft model",
        _CPU_DRAFTS,
    ),
    _replaced(
        "sglang.srt.speculative.eagle_worker_v2.select_top_k_tokens",
        "it is compiled with a C++ compiler, which a machine need not have",
        _CPU_DRAFTS,
    ),
)

TOUCHES = (*_ANYWHERE, *_DRAFT_MODELS, *_ON_A_CPU, *_DRAFT_MODELS_ON_A_CPU)
