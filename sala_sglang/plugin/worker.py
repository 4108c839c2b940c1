"""What a process with the model gets: the attention backend, its pools, and hooks on cache and scheduler."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sala_kernels import targets

from sala_sglang import environment
from sala_sglang.attention import BACKEND
from sala_sglang.config import SALAConfig
from sala_sglang.plugin import cpu, hierarchical_cache, lora, prefix_cache, quantization, scheduler_requests
from sala_sglang.plugin.hooks import apply_hooks, hook_after, hook_around

if TYPE_CHECKING:  # importing SGLang's backends takes long
    from sala_sglang.attention.sparse_backend import SparseBackend

logger = logging.getLogger(__name__)

_done: set[str] = set()


def prepare_worker(config: SALAConfig) -> None:
    """The touches that only a process with the model needs; called when the model is built. Idempotent."""
    if "worker" in _done:
        return
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.runtime_context import get_lora, get_memory

    check_resolution()
    check_ranks_agree()
    force_paths()
    register_attention_backend(BACKEND)(create_sparse_backend)
    hook_after(POOL_HOOKS)
    hook_around(prefix_cache.hooks(config) | scheduler_requests.HOOKS | quantization.WORKER_HOOKS)
    if get_lora().enable_lora:
        hook_around(lora.HOOKS)
        if cpu.without_cuda():
            cpu.unpin_lora()
    if get_memory().enable_hierarchical_cache:
        hook_around(hierarchical_cache.HOOKS)
        if cpu.without_cuda():
            cpu.provide_host_copies()
    apply_hooks()
    _done.add("worker")


def check_resolution() -> None:
    """Raise RuntimeError where SGLang resolved its arguments in a process without the plugin, as some of its tools do.

    Nothing was refused then, and pages, graphs and backend are those of SGLang's own model.
    """
    from sglang.srt.runtime_context import get_exec

    backend = get_exec().kernel.attention_backend
    if backend != BACKEND:
        raise RuntimeError(
            f"sala-sglang would not serve: the attention backend is {backend!r}, expected {BACKEND!r}. The program "
            "resolved its arguments before it loaded SGLang's plugins; docs/guides/tools_without_plugins.md says what "
            "to do"
        )


def check_ranks_agree() -> None:
    """Raise ValueError naming the first option that is not the same on all ranks, which may be on several nodes."""
    from sglang.srt.runtime_context import get_parallel

    group = get_parallel().world_group
    if group.world_size == 1:
        return
    options: list = [None] * group.world_size
    torch.distributed.all_gather_object(options, environment.shared(), group=group.cpu_group)
    for name in options[0]:
        values = [of_rank.get(name) for of_rank in options]
        if len(set(values)) > 1:
            raise ValueError(
                f"{name} differs between ranks: {', '.join(map(str, values))}; allowed: the same on every node "
                f"(--dense-as-sparse sets {environment.DENSE_AS_SPARSE} on its own node alone)"
            )


def force_paths() -> None:
    """Have kernels take the paths that the environment names. Raises ValueError where this GPU cannot take one."""
    if paths := environment.forced_paths():
        targets.force(paths, torch.device("cpu" if cpu.without_cuda() else "cuda"))
        logger.warning("%s = %s: paths are not those that were measured", environment.PATHS, paths)


def create_sparse_backend(runner: Any) -> SparseBackend:
    """Factory of the ``sala`` backend; checks that model, pool and page size of this worker are ours."""
    from sala_sglang.attention.kv_pool import SalaKVPool
    from sala_sglang.attention.sparse_backend import SparseBackend
    from sala_sglang.models.minicpm_sala import MiniCPMSALAForCausalLM

    pool: Any = getattr(runner.token_to_kv_pool, "full_kv_pool", None)
    for what, found, expected in (
        ("config", runner.model_config.hf_config, SALAConfig),
        ("model", runner.model, MiniCPMSALAForCausalLM),
        ("KV pool", pool, SalaKVPool),
    ):
        if not isinstance(found, expected):
            raise RuntimeError(f"sala-sglang would not serve: the {what} is {type(found)}, expected {expected}")
    logger.info("MiniCPM-SALA is served by sala-sglang")
    context = runner.model_config.context_len
    if pool.size < context:
        logger.warning(
            "KV pages for %d tokens are fewer than the context of %d: longer requests will be refused. Raise "
            "--mem-fraction-static or --max-total-tokens, lower --max-mamba-cache-size, or lower --context-length",
            *(pool.size, context),
        )
    return SparseBackend(runner)


def choose_pool_class(result: type, configurator: Any, **pool_classes: type) -> type | None:
    """The class of the KV pool of this model; None keeps SGLang's choice for others."""
    config = configurator.model_config.hf_config
    if not isinstance(config, SALAConfig):
        return None
    from sala_sglang.attention.kv_pool import pool_class

    return pool_class(config.sparse_geometry)


def add_compressed_keys(result: int, configurator: Any, kvc: Any, num_layers: int) -> int | None:
    """Bytes of a token in the KV pool with its share of compressed keys; None keeps SGLang's for other models."""
    config = kvc.model_config.hf_config
    if not isinstance(config, SALAConfig):
        return None
    from sglang.srt.runtime_context import get_parallel

    kv_heads = kvc.model_config.get_num_kv_heads(get_parallel().attn_tp_size)
    itemsize = kvc.kv_cache_dtype.itemsize
    geometry = config.sparse_geometry
    return result + geometry.compressed_bytes_per_token(num_layers, kv_heads, config.head_dim, itemsize)


_CONFIGURATOR = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator"
# SGLang's functions and what runs after them.
POOL_HOOKS: dict[str, Callable] = {
    f"{_CONFIGURATOR}._hybrid_full_attention_pool_class": choose_pool_class,
    "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size": add_compressed_keys,
}
