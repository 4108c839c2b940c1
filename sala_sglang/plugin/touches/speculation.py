"""Touches of workers that speculate: ``speculation.py``, ``cpu_speculation.py`` and the package ``speculation``."""

from sala_sglang.plugin.touches.touch import (
    AROUND,
    NO_CUDA,
    OFFICIAL,
    REPLACED,
    SPECULATIVE,
    SUBCLASS,
    WORKER,
    Touch,
)

_CPU = f"{SPECULATIVE}; {NO_CUDA}"

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


def _replaced(target: str, why: str) -> Touch:
    until = "SGLang has it in torch, outside its CPU engine"
    return Touch(target=target, how=REPLACED, process=WORKER, when=_CPU, why=why, until=until)


_ON_A_CPU = (
    _replaced("sglang.srt.mem_cache.allocation.assign_req_to_token_pool_func", "its kernel is for GPUs"),
    _replaced("sglang.srt.mem_cache.allocation.get_last_loc", "it takes a kernel for GPUs for backends not its own"),
    _replaced("sglang.srt.speculative.eagle_utils.verify_tree_greedy_func", "its kernel is for GPUs"),
    _replaced("sglang.srt.speculative.eagle_utils.tree_speculative_sampling_target_only", "its kernel is for GPUs"),
    _replaced("sglang.srt.speculative.eagle_utils.top_k_renorm_prob", "it is flashinfer's, for GPUs"),
    _replaced("sglang.srt.speculative.eagle_utils.top_p_renorm_prob", "it is flashinfer's, for GPUs"),
)

TOUCHES = (*_ANYWHERE, *_ON_A_CPU)
