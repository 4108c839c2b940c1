"""What a process with the model gets: the attention backend, its pools, and hooks on cache and scheduler."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sala_kernels import targets
from sala_kernels.kv_scales import E4M3

from sala_sglang import environment
from sala_sglang.attention import BACKEND
from sala_sglang.config import SALAConfig
from sala_sglang.plugin import (
    cpu,
    cpu_drafts,
    cpu_speculation,
    disaggregation,
    draft_model,
    hierarchical_cache,
    lora,
    prefix_cache,
    quantization,
    sampling_kernels,
    scheduler_requests,
    speculation,
)
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
    from sglang.srt.runtime_context import get_disagg, get_lora, get_memory, get_parallel, get_spec

    check_resolution()
    agree_on_options()
    force_paths()
    sampling_kernels.compile_while_loading()
    register_attention_backend(BACKEND)(create_sparse_backend)
    hook_after(POOL_HOOKS)
    hook_around(prefix_cache.hooks(config) | scheduler_requests.HOOKS | quantization.WORKER_HOOKS)
    if get_parallel().pp_size > 1:
        hook_around(STAGE_HOOKS)
    if get_lora().enable_lora:
        hook_around(lora.HOOKS)
        if cpu.without_cuda():
            cpu.unpin_lora()
    if get_memory().enable_hierarchical_cache:
        from sala_sglang.plugin import storage  # imports SGLang's caches

        hook_around(hierarchical_cache.HOOKS | storage.HOOKS)
        if cpu.without_cuda():
            cpu.provide_host_copies()
    if (mode := get_disagg().disaggregation_mode) != "null":
        hook_around(disaggregation.hooks(config, mode))
        if cpu.without_cuda():
            cpu.send_without_early_pages()
            hook_around(cpu.DISAGGREGATION_HOOKS)
    if get_spec().speculative_algorithm is not None:
        hook_around(speculation.HOOKS)
        if cpu.without_cuda():
            cpu_speculation.provide_verification()
    if get_spec().speculative_algorithm in draft_model.ALGORITHMS:
        hook_around(draft_model.HOOKS)
        hook_after(draft_model.POOL_HOOKS)
        if cpu.without_cuda():
            hook_around(cpu_drafts.HOOKS)
            cpu_drafts.provide_drafts()
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


def agree_on_options() -> None:
    """Have what one node was told hold on all nodes, each of which has its own command line and environment.

    Raises ValueError naming the first option for which two nodes were told different values.
    """
    from sglang.srt.runtime_context import get_parallel

    group = get_parallel().world_group
    if group.world_size == 1:
        return
    own = environment.shared()
    options: list = [None] * group.world_size
    torch.distributed.all_gather_object(options, own, group=group.cpu_group)
    for name in own:
        told = dict.fromkeys(of_rank.get(name) for of_rank in options if of_rank.get(name) is not None)
        if len(told) > 1:
            raise ValueError(
                f"{name} differs between ranks: {', '.join(told)}; allowed: the same on every node, or on one of them "
                f"(--dense-as-sparse sets {environment.DENSE_AS_SPARSE})"
            )
        if told and own[name] is None:
            os.environ[name] = next(iter(told))
            logger.info("%s = %s, as another node was told", name, os.environ[name])


def force_paths() -> None:
    """Have kernels take the paths that the environment names. Raises ValueError where this GPU cannot take one."""
    if paths := environment.forced_paths():
        targets.force(paths, torch.device("cpu" if cpu.without_cuda() else "cuda"))
        logger.warning("%s = %s: paths are not those that were measured", environment.PATHS, paths)


def create_sparse_backend(runner: Any) -> SparseBackend:
    """Factory of the ``sala`` backend; checks that model, pool and page size of this worker are ours."""
    from sglang.srt.runtime_context import get_memory

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
    log_kv_scales(runner.model, pool.dtype)
    context = runner.model_config.context_len
    if pool.size < context:
        logger.warning(
            "KV pages for %d tokens are fewer than the context of %d: longer requests will be refused. Raise "
            "--mem-fraction-static or --max-total-tokens, lower --max-mamba-cache-size, or lower --context-length",
            *(pool.size, context),
        )
    if not runner.is_draft_worker and get_memory().enable_hierarchical_cache:
        from sala_sglang.plugin import storage

        storage.serve(runner)
    return SparseBackend(runner)


def log_kv_scales(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Say which scales keys and values in FP8 have; SGLang's own line speaks of --quantization-param-path."""
    if dtype != E4M3:
        return
    scales = [buffer for name, buffer in model.named_buffers() if name.endswith("kv_scales")]
    from_checkpoint = any((one != 1).any() for one in scales)
    logger.info("Keys and values are in FP8; their scales are %s", "the checkpoint's" if from_checkpoint else "1")


def choose_pool_class(result: type, configurator: Any, **pool_classes: type) -> type | None:
    """The class of the KV pool of this model; None keeps SGLang's choice for others."""
    config = configurator.model_config.hf_config
    if not isinstance(config, SALAConfig):
        return None
    from sala_sglang.attention.kv_pool import pool_class

    return pool_class(config.sparse_geometry, configurator.model_config.dtype)


def add_compressed_keys(result: int, configurator: Any, kvc: Any, num_layers: int) -> int | None:
    """Bytes of a token in the KV pool with its share of compressed keys; None keeps SGLang's for other models.

    Keys and values may be in FP8, compressed keys have the model's dtype.
    """
    config = kvc.model_config.hf_config
    if not isinstance(config, SALAConfig):
        return None
    from sglang.srt.runtime_context import get_parallel

    kv_heads = kvc.model_config.get_num_kv_heads(get_parallel().attn_tp_size)
    geometry, itemsize = config.sparse_geometry, kvc.model_config.dtype.itemsize
    return result + geometry.compressed_bytes_per_token(num_layers, kv_heads, config.head_dim, itemsize)


def refuse_update_group(original: Callable, updater: Any, *args: Any, **kwargs: Any) -> tuple[bool, str]:
    """The answer of a pipeline stage to a trainer that would send weights over a group of processes."""
    return False, (
        "MiniCPM-SALA: weights over a process group are not supported with pipeline stages (SGLang gives ranks of two "
        "stages the same number in it, and they would wait for ever); allowed: /update_weights_from_disk and "
        "/update_weights_from_tensor"
    )


_CONFIGURATOR = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator"
# SGLang's functions, and what runs around them with several pipeline stages.
STAGE_HOOKS: dict[str, Callable] = {
    "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater.init_weights_update_group": (
        refuse_update_group
    ),
}
# SGLang's functions and what runs after them.
POOL_HOOKS: dict[str, Callable] = {
    f"{_CONFIGURATOR}._hybrid_full_attention_pool_class": choose_pool_class,
    "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size": add_compressed_keys,
}
