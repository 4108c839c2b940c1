"""Server arguments with which MiniCPM-SALA cannot be served, and why; checked when a server starts."""

from typing import Any

import torch

from sala_sglang import host_cache
from sala_sglang.config import SALAConfig
from sala_sglang.sharding import check_tensor_parallel

# (field, the values that work, what is missing for the others)
ARGUMENT_LIMITS: tuple[tuple[str, tuple, str], ...] = (
    ("speculative_algorithm", (None,), "recurrent states cannot be rolled back to the accepted draft yet"),
    ("pp_size", (1,), "the layers are not split over pipeline stages"),
    ("disaggregation_mode", ("null",), "compressed keys are not transferred between servers"),
    ("attn_dp_size", (1,), "the backends have one plan per forward pass"),
    ("attn_cp_size", (1,), "a rank selects among all tokens of a request"),
    ("dcp_size", (1,), "a rank selects among all tokens of a request"),
    ("enable_unified_memory", (False,), "pages and states come from separate pools"),
    ("enable_int8_mamba_checkpoint", (False,), "state snapshots are float32"),
)


def check_arguments(server_args: Any, config: SALAConfig, dtype: torch.dtype) -> None:
    """Raise ValueError for the first argument that has a value other than those that work. dtype: the model's."""
    from sglang.srt.arg_groups.overrides import resolution_result

    enabled, device = (resolution_result(server_args, field) for field in ("enable_hierarchical_cache", "device"))
    for field, allowed, reason in (*ARGUMENT_LIMITS, _cache_limit(dtype), *host_cache.argument_limits(enabled, device)):
        value = resolution_result(server_args, field)
        if value not in allowed:
            shown = ", ".join(map(repr, allowed))
            raise ValueError(f"MiniCPM-SALA: {field} = {value!r} is not supported ({reason}); allowed: {shown}")
    check_tensor_parallel(config, resolution_result(server_args, "tp_size"))
    block = config.sparse_geometry.block_size
    if resolution_result(server_args, "page_size") not in (None, block):
        value = resolution_result(server_args, "page_size")
        raise ValueError(f"MiniCPM-SALA: page_size = {value} is not supported; allowed: {block}, the sparse block")


def _cache_limit(dtype: torch.dtype) -> tuple[str, tuple, str]:
    names = ("bfloat16", "bf16") if dtype == torch.bfloat16 else ()
    return "kv_cache_dtype", ("auto", *names), "the kernels read keys and values of the model's dtype"
