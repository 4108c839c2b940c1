"""Prefill on one server, decode on another (``--disaggregation-mode``).

SGLang sends pages and recurrent states. Compressed keys stay where they are: the decoding server makes its own from the
keys that arrived, which gives the same bits (``attention/arrived_pages.py``). So they cost no bytes on the wire, and
neither backends nor tensor-parallel sizes have to know of them.
"""

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from sala_sglang import __version__
from sala_sglang.config import SALAConfig
from sala_sglang.plugin.fingerprint import digest, facts

logger = logging.getLogger(__name__)

# (field, the values that work, what is missing for the others), where prefill and decode are apart.
LIMITS = (
    (
        "disaggregation_transfer_backend",
        ("mooncake", "mooncake_tcp"),
        "nixl was not tried, the others move nothing, or are written for other hardware",
    ),
    ("speculative_algorithm", (None,), "drafts were not tried with prompts of another server"),
    ("enable_lora", (None, False), "adapters were not tried with prompts of another server"),
    ("lora_paths", (None,), "adapters were not tried with prompts of another server"),
    ("dp_size", (1,), "a router divides requests over servers: start more of them"),
    ("pp_size", (1,), "stages were not tried with pages and states that travel"),
    ("enable_hierarchical_cache", (False,), "pages in host memory were not tried with those that travel"),
)


def argument_limits(mode: str) -> tuple[tuple[str, tuple, str], ...]:
    """(field, the values that work, what is missing for the others) for ServerArgs with this mode."""
    return () if mode == "null" else LIMITS


def defaults(mode: str) -> dict[str, Any]:
    """Values of ServerArgs with this mode, whatever was given.

    A server that decodes keeps pages and states of what it retracts. With overlap scheduling a step is under way then
    whose token is dropped and computed again: keys and values of that step are written again, but a state would take
    its token in twice.
    """
    return {"disable_overlap_schedule": True} if mode == "decode" else {}


def hooks(config: SALAConfig, mode: str) -> dict[str, Callable]:
    """SGLang's functions and what runs around them on a server of this mode."""
    layout = {f"sglang.srt.disaggregation.{mode}.get_pd_kv_layout": Layout(config).name}
    return layout | (DECODE_HOOKS if mode == "decode" else PREFILL_HOOKS)


class Layout:
    """What two servers have to agree on, so that bytes of one mean the same to the other."""

    def __init__(self, config: SALAConfig):
        self.config = config

    def name(self, original: Callable, pool: Any) -> str:
        """What SGLang compares when two servers meet. pool: HybridLinearKVPool."""
        from sglang.srt.runtime_context import get_parallel

        known = facts(self.config, pool.full_kv_pool.compressed_dtype, pool.full_kv_pool.dtype)
        ranks = get_parallel().attn_tp_size  # SGLang would cut pages and states for another number: not tried
        return f"sala-sglang {__version__}, tp_size {ranks}, dense_len {known['dense_len']}, {digest(known)}"


def refuse_other_layout(original: Callable, manager: Any, address: str) -> bool:
    """Whether the server that prefills at ``address`` is known and fits; SGLang lets the one that decodes end."""
    try:
        return original(manager, address)
    except (AssertionError, RuntimeError) as error:
        logger.error(
            "MiniCPM-SALA: prompts from %s are refused: %s. Allowed: servers with the same versions, config.json, "
            "dtypes and environment",
            *(address, error),
        )
        return False


def send_pages_that_stay(
    original: Callable, scheduler: Any, request: Any, last_chunk: bool = False, end_idx: int | None = None
) -> None:
    """Hand pages of a prompt that is not finished to the sender as far as they are locked in the prefix cache.

    Threads read them later, and pages behind those may be others by then. When a snapshot is inserted, pages whose
    tokens the cache knows already are freed as duplicates, and the next chunk may take them: that happens where
    prompts part, as a dense and a sparse one do, or were computed at the same time. The last chunk is sent after the
    prompt has been inserted, and nothing of it is inserted or freed again before all has been read.

    end_idx: tokens that are computed; unset, all of the chunk.
    """
    if not last_chunk and scheduler.tree_cache.supports_prefix_sharing():
        computed = min(request.extend_end, len(request.origin_input_ids)) if end_idx is None else end_idx
        end_idx = min(computed, request.kv.cache_protected_len)
    original(scheduler, request, last_chunk=last_chunk, end_idx=end_idx)


def compress_keys_of_arrived(original: Callable, scheduler: Any, running_batch: Any) -> Any:
    """The requests whose prompts have arrived, or that come back after a retraction, with their compressed keys.

    Runs on the scheduler's stream, behind the last step and before the next one, as SGLang's own restoring does.
    """
    batch = original(scheduler, running_batch)
    if batch is not None:
        from sala_sglang.attention.arrived_pages import compress_arrived, sparse_layers  # imports SGLang's pools

        runner = scheduler.tp_worker.model_runner
        pool, geometry = runner.token_to_kv_pool, runner.model_config.hf_config.sparse_geometry
        rows, ends = batch.req_pool_indices_cpu.tolist(), batch.seq_lens_cpu.tolist()
        arrived = list(zip(rows, batch.prefix_lens, ends, strict=True))
        token_slots = runner.req_to_token_pool.req_to_token
        compress_arrived(sparse_layers(runner.model, pool), pool, token_slots, arrived, geometry)
    return batch


def leave_memory_for_arriving(original: Callable, configurator: Any, memory_before_model: int) -> int:
    """Bytes that are left for pages beside the states of all requests that run or arrive.

    SGLang makes room for the states of those that arrive when memory has been divided already.
    """
    from sglang.srt.mem_cache.allocation_sizing import get_mamba_tracking_slots
    from sglang.srt.runtime_context import get_context, get_disagg, get_exec, get_schedule

    left, schedule = original(configurator, memory_before_model), get_schedule()
    if schedule.max_running_requests is None:  # as many as there is room for, and none beside them
        return left
    tracking = get_mamba_tracking_slots(
        extra_buffer=get_exec().mamba.enable_mamba_extra_buffer, overlap=not schedule.disable_overlap_schedule
    )
    requests = schedule.max_running_requests + get_disagg().disaggregation_decode_extra_slots
    more = requests * (1 + tracking) - schedule.max_mamba_cache_size
    if more <= 0:
        return left
    get_context().override(__name__, max_mamba_cache_size=schedule.max_mamba_cache_size + more)
    return left - more * configurator.mambaish_config.mamba2_cache_params.mamba_cache_per_req


def end_instead_of_second_prefill(original: Callable, queue: Any, request: Any) -> None:
    """A request that was retracted for good gets an error, for its client to send it again.

    SGLang would send prompt and answer so far to the other server as one prompt, and that may be a sparse one where the
    prompt was dense.
    """
    from sglang.srt.disaggregation.utils import prepare_abort

    message = "MiniCPM-SALA: the request was retracted (/pause_generation), and its prompt is on another server"
    prepare_abort(request, message, status_code=HTTPStatus.SERVICE_UNAVAILABLE)
    queue.scheduler.output_streamer.stream_output([request], request.return_logprob)


# SGLang's functions and what runs around them on a server that prefills, and on one that decodes.
PREFILL_HOOKS: dict[str, Callable] = {
    "sglang.srt.disaggregation.prefill.SchedulerDisaggregationPrefillMixin.send_kv_chunk": send_pages_that_stay
}
_DECODE = "sglang.srt.disaggregation.decode"
DECODE_HOOKS: dict[str, Callable] = {
    f"{_DECODE}.SchedulerDisaggregationDecodeMixin.get_new_prebuilt_batch": compress_keys_of_arrived,
    f"{_DECODE}.DecodePreallocQueue.hold_rebootstrap": end_instead_of_second_prefill,
    "sglang.srt.disaggregation.common.conn.CommonKVManager.try_ensure_parallel_info": refuse_other_layout,
    "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator._profile_available_bytes": (
        leave_memory_for_arriving
    ),
}
