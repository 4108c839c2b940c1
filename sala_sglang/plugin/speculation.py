"""Speculative decoding: what is refused with it, its defaults, and the hooks that make a verify step this model's.

A chain of drafts is verified in one step, by as many rows per request. What SGLang does with a step's logits under
speculation leaves out or blurs some of a request's fields: requests with those are refused, since their answers would
not be what they are without speculation.
"""

from collections.abc import Callable
from typing import Any

import torch

from sala_sglang.config import SALAConfig
from sala_sglang.plugin import draft_model

ALGORITHMS = (None, "NGRAM", *draft_model.ALGORITHMS)
DEFAULT_ROWS = 4  # per request in a verify step: its last token and three drafts
MAX_ROWS = 16
SGLANG_BREADTH = 10  # of SGLang's trees of n-grams, where the user names none
# (field, the values that work, what is missing for the others), where a server speculates.
LIMITS = (
    ("pp_size", (1,), "states of a verify step stay on the stage that has made them"),
    ("enable_lora", (None, False), "verify steps with adapters were not tried"),
    ("lora_paths", (None,), "verify steps with adapters were not tried"),
    ("enable_watermark", (False,), "SGLang's watermark wants the masks of trees"),
    ("enable_return_hidden_states", (False,), "hidden states would be those of drafts too"),
    ("speculative_ngram_max_bfs_breadth", (1, SGLANG_BREADTH), "drafts are chains"),
    ("speculative_eagle_topk", (None, 1), "drafts are chains"),
    ("speculative_num_draft_tokens", (None, *range(2, MAX_ROWS + 1)), "rows of a request in a verify step"),
    ("speculative_num_steps", (None, *range(1, MAX_ROWS)), "drafts of a request in a verify step"),
)
NO_DRAFT_MODEL = (("speculative_draft_model_path", (None,), "without EAGLE3 or STANDALONE no model drafts"),)
# Fields of a request's sampling parameters, the value that works, and what SGLang does with others when it verifies.
REQUEST_LIMITS = (
    ("min_p", 0.0, "it is ignored"),
    ("frequency_penalty", 0.0, "tokens that are accepted together are not all counted"),
    ("presence_penalty", 0.0, "tokens that are accepted together are not all counted"),
    ("repetition_penalty", 1.0, "tokens that are accepted together are not all counted"),
    ("min_new_tokens", 0, "steps are counted in place of tokens"),
)


def algorithm_of(found: Callable[[str], Any]) -> str | None:
    """The algorithm as SGLang names it; users may write it in small letters."""
    given = found("speculative_algorithm")
    return given.upper() if isinstance(given, str) else given


def argument_limits(found: Callable[[str], Any]) -> tuple[tuple[str, tuple, str], ...]:
    """(field, the values that work, what is missing for the others) for the ServerArgs that ``found`` reads."""
    algorithm = algorithm_of(found)
    if algorithm in draft_model.ALGORITHMS:
        return *LIMITS, *draft_model.LIMITS, *draft_model.device_limits(found("device"))
    return NO_DRAFT_MODEL if algorithm is None else (*LIMITS, *NO_DRAFT_MODEL)


def defaults(found: Callable[[str], Any]) -> dict[str, Any]:
    """What a server that speculates gets in place of SGLang's defaults, by field."""
    algorithm = algorithm_of(found)
    if algorithm is None:
        return {}
    chosen: dict[str, Any] = {"speculative_ngram_max_bfs_breadth": 1}
    if algorithm in draft_model.ALGORITHMS:
        return chosen | draft_model.defaults(found, found("device"), DEFAULT_ROWS)
    rows = {"speculative_num_draft_tokens": DEFAULT_ROWS} if found("speculative_num_draft_tokens") is None else {}
    return rows | chosen


def check_message(message: Any) -> None:
    """Raise ValueError that names field, value and what is allowed for a request whose answer would change.

    message: SGLang's TokenizedGenerateReqInput.
    """
    from sglang.srt.runtime_context import get_spec

    algorithm = get_spec().speculative_algorithm
    if algorithm is None:
        return
    for field, allowed, what in REQUEST_LIMITS:
        value = getattr(message.sampling_params, field)
        if value is not None and value != allowed:
            raise ValueError(
                f"{field} = {value!r} is not supported with speculative decoding ({what}); allowed: {allowed}"
            )
    if message.custom_logit_processor is not None:
        raise ValueError(
            "custom_logit_processor is not supported with speculative decoding (it is ignored); allowed: none"
        )
    if algorithm in draft_model.ALGORITHMS:
        draft_model.check_message(message)


def choose_worker(original: Callable, algorithm: Any, server_args: Any) -> Any:
    """The class that drafts and verifies."""
    if not algorithm.is_ngram():
        return original(algorithm, server_args)
    from sala_sglang.speculation.worker import ChainWorker

    return ChainWorker


def no_state_per_draft(original: Callable) -> bool:
    """Whether the pool keeps no state per row of a verify step, and no memory is set aside for them."""
    return True


def leave_memory_for_stash(original: Callable, configurator: Any, total_rest_memory: float) -> float:
    """GiB that are left for pages after the states, and after k and v of the rows of a verify step."""
    from sglang.srt.runtime_context import get_parallel, get_schedule, get_spec

    model = configurator.model_config
    rows = get_schedule().max_running_requests * get_spec().speculative_num_draft_tokens
    stash = rows * row_bytes(model.hf_config, model.dtype, get_parallel().attn_tp_size)
    return original(configurator, total_rest_memory) - stash / 2**30


def row_bytes(config: SALAConfig, dtype: torch.dtype, ranks: int) -> int:
    """Bytes of k and v that all lightning layers of a rank keep of a row of a verify step."""
    geometry = config.lightning_geometry
    row_values = 2 * geometry.num_heads // ranks * geometry.head_dim
    return len(config.lightning_layer_ids) * row_values * dtype.itemsize


_POOLS = "sglang.srt.mem_cache.kv_cache_configurator"
# SGLang's functions and what runs around them.
HOOKS: dict[str, Callable] = {
    "sglang.srt.speculative.spec_info.SpeculativeAlgorithm.create_worker": choose_worker,
    f"{_POOLS}._pd_prefill_skips_mamba_spec_state": no_state_per_draft,
    f"{_POOLS}.KVCacheConfigurator._handle_max_mamba_cache": leave_memory_for_stash,
}
