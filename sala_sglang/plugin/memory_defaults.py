"""Memory of GPUs with less than 60 GiB, where SGLang's defaults would refuse what the GPU can hold.

SGLang divides what is left beside the weights about evenly between pages and recurrent states. On a small GPU the pages
then hold less than one request of the whole context, although states for many requests lie idle. Larger GPUs keep what
they have.
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from sala_sglang.cards import plan
from sala_sglang.cards.memory import (
    MIB,
    STATES_PER_REQUEST,
    Load,
    cache_bytes_per_token,
    compressed_bytes_per_token,
    memory_bytes,
    state_bytes,
    weight_bytes,
)
from sala_sglang.config import SALAConfig

logger = logging.getLogger(__name__)

SMALL_MIB = 60 * 1024  # SGLang's own bound between small and large GPUs
# Whoever sets one of these has divided the memory already.
DIVIDING_FIELDS = "max_mamba_cache_size", "max_total_tokens"
# With one of these other things take memory too.
FURTHER_FIELDS = "enable_lora", "speculative_algorithm", "enable_hierarchical_cache"
POOLS = ("weights", "keys and values", "compressed keys", "states of running requests")


class Given(NamedTuple):
    """What decides: the GPU, the server's arguments as SGLang resolved them, and whether the user named two of them."""

    memory_mib: int
    context_tokens: int
    requests: int | None
    chunk_tokens: int
    fraction: float
    states_ratio: float
    prefix_cache: bool
    named: frozenset[str]
    weights: int  # bytes
    cache: str = "bf16"


def memory_defaults(config: SALAConfig, given: Given) -> dict[str, Any]:
    """The arguments to declare, so that the pages hold a request of the whole context; empty where they do already.

    Also empty where no arguments would make them hold it.
    """
    total, state = given.memory_mib * MIB - plan.BEFORE_BYTES, state_bytes(config)
    per_token = cache_bytes_per_token(config, given.cache) + compressed_bytes_per_token(config)
    pages = plan.pool_tokens(given.context_tokens) * per_token
    rest = given.fraction * total - given.weights
    states = rest * given.states_ratio / (1 + given.states_ratio)
    if given.memory_mib >= SMALL_MIB or rest - states >= pages:
        return {}
    least = (STATES_PER_REQUEST if given.prefix_cache else 1) * (given.requests or 1)
    chunks = [given.chunk_tokens] + [plan.LEAST_CHUNK_TOKENS] * ("chunked_prefill_size" not in given.named)
    for chunk in chunks:
        highest = given.fraction
        if "mem_fraction_static" not in given.named:
            highest = max(highest, _fraction_beside(config, given, chunk))
        left = int((highest * total - given.weights - pages) // state) - 1
        count = min(left, max(int(states // state) - 1, least))
        if count >= least:
            found: dict[str, Any] = {"max_mamba_cache_size": count}
            fraction = plan.round_up((given.weights + pages + (count + 1) * state) / total)
            found |= {"mem_fraction_static": fraction} if fraction > given.fraction else {}
            return found | ({"chunked_prefill_size": chunk} if chunk != given.chunk_tokens else {})
    return {}


def _fraction_beside(config: SALAConfig, given: Given, chunk: int) -> float:
    """SGLang's fraction that leaves what a step of ``chunk`` tokens takes beside weights and pools, and the error."""
    load = Load(given.context_tokens, given.requests or 1, chunk, cache=given.cache, prefix_cache=given.prefix_cache)
    beside = sum(size for name, size in memory_bytes(config, load).items() if name not in POOLS)
    total = given.memory_mib * MIB
    pools = total * (1 - plan.ERROR) - beside
    return pools / (total - plan.BEFORE_BYTES) - plan.FRACTION_STEP  # which rounding up takes


def declare_memory_defaults(server_args: Any, config: SALAConfig, model: Any) -> None:
    """Declare ``memory_defaults`` of this machine's GPU and name them in the log."""
    from sglang.srt.arg_groups.overrides import declare_resolution

    given = _given(server_args, config, model)
    if given is None:
        return
    if found := memory_defaults(config, given):
        declare_resolution(server_args, __name__, **found)
        shown = ", ".join(f"{name} = {value}" for name, value in found.items())
        logger.warning(
            "MiniCPM-SALA: on this GPU of %d MiB %s, so that a request of %d tokens fits",
            given.memory_mib,
            shown,
            given.context_tokens,
        )


def _given(server_args: Any, config: SALAConfig, model: Any) -> Given | None:
    """None where the memory is not that of one small GPU, or not divided in the way that is computed here."""
    from sglang.srt.arg_groups.overrides import resolution_result
    from sglang.srt.utils.common import get_device_memory_capacity

    def found(field: str) -> Any:
        return resolution_result(server_args, field)

    if found("device") != "cuda" or found("tp_size") * found("pp_size") * found("dp_size") != 1:
        return None
    if any(found(field) for field in FURTHER_FIELDS) or any(found(field) is not None for field in DIVIDING_FIELDS):
        return None
    memory_mib = get_device_memory_capacity("cuda")
    prefix_cache = not found("disable_radix_cache")
    if memory_mib is None or (found("max_running_requests") is not None and not prefix_cache):
        return None
    return Given(
        memory_mib=int(memory_mib),
        context_tokens=model.context_len,
        requests=found("max_running_requests"),
        chunk_tokens=found("chunked_prefill_size"),
        fraction=found("mem_fraction_static"),
        states_ratio=found("mamba_full_memory_ratio"),
        prefix_cache=prefix_cache,
        named=frozenset(
            name for name in ("mem_fraction_static", "chunked_prefill_size") if getattr(server_args, name) is not None
        ),
        weights=_weights(config, model),
        cache="fp8" if str(found("kv_cache_dtype")).startswith("fp8") else "bf16",
    )


def _weights(config: SALAConfig, model: Any) -> int:
    """Bytes of the weights on the GPU: of the checkpoint's files, or as SGLang quantises them."""
    if model.quantization in ("fp8", "w8a8_fp8"):
        return weight_bytes(config, "fp8")
    files = list(Path(model.model_path).glob("*.safetensors"))
    return sum(file.stat().st_size for file in files) if files else weight_bytes(config, "bf16")
