"""Touches of workers with prefill apart from decode: ``disaggregation.py``, and what ``cpu.py`` opens for it."""

from sala_sglang.plugin.touches.touch import AROUND, NO_CUDA, VARIABLE, WORKER, Touch

DISAGGREGATION = "--disaggregation-mode"

_BOTH = tuple(
    Touch(
        target=f"sglang.srt.disaggregation.{mode}.get_pd_kv_layout",
        how=AROUND,
        process=WORKER,
        when=f"{DISAGGREGATION} {mode}",
        why="what both servers must have in common: SGLang compares the size of a page and the dtype of keys alone",
        until="a pool can say what it has to have in common with another one",
    )
    for mode in ("prefill", "decode")
)

_PREFILL = (
    Touch(
        target="sglang.srt.disaggregation.prefill.SchedulerDisaggregationPrefillMixin.send_kv_chunk",
        how=AROUND,
        process=WORKER,
        when=f"{DISAGGREGATION} prefill",
        why="pages on their way could be freed as duplicates by the next snapshot, and taken by the next chunk",
        until="SGLang frees duplicates behind the transfers that read them",
    ),
)

_DECODE = (
    Touch(
        target="sglang.srt.disaggregation.decode.SchedulerDisaggregationDecodeMixin.get_new_prebuilt_batch",
        how=AROUND,
        process=WORKER,
        when=f"{DISAGGREGATION} decode",
        why="compressed keys do not travel: they are made from the keys that arrived, before the first step",
        until="a pool can say what is to be done with pages that have arrived",
    ),
    Touch(
        target="sglang.srt.disaggregation.decode.DecodePreallocQueue.hold_rebootstrap",
        how=AROUND,
        process=WORKER,
        when=f"{DISAGGREGATION} decode",
        why="prompt and answer so far would be prefilled as one prompt, which may be sparse where the prompt was dense",
        until="SGLang tells the other server how long the prompt was",
    ),
    Touch(
        target="sglang.srt.disaggregation.common.conn.CommonKVManager.try_ensure_parallel_info",
        how=AROUND,
        process=WORKER,
        when=f"{DISAGGREGATION} decode",
        why="a server that does not fit ends the one that decodes; here only its requests fail",
        until="SGLang refuses the request",
    ),
    Touch(
        target="sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator._profile_available_bytes",
        how=AROUND,
        process=WORKER,
        when=f"{DISAGGREGATION} decode",
        why="states of requests that arrive, 48 MiB each, are allocated beyond the memory that was divided",
        until="SGLang counts them",
    ),
)

_ON_CPU = (
    Touch(
        target="SGLANG_DISAGG_PREFILL_EARLY_SEND_CACHED_PREFIX",
        how=VARIABLE,
        process=WORKER,
        when=f"{DISAGGREGATION} on {NO_CUDA}",
        why="cached pages would be sent before a step, behind an event of CUDA",
        until="SGLang does so only where there is an accelerator",
    ),
    Touch(
        target="sglang.srt.disaggregation.mooncake.conn.MooncakeKVSender.__init__",
        how=AROUND,
        process=WORKER,
        when=f"{DISAGGREGATION} on {NO_CUDA}",
        why="numbers of pages would be copied from a GPU through pinned memory",
        until="SGLang does so only where there is an accelerator",
    ),
)

TOUCHES = (*_BOTH, *_PREFILL, *_DECODE, *_ON_CPU)
