"""Registration with SGLang: the only file that touches its registries and hooks.

SGLang knows the architecture itself and only logs what goes wrong in a plugin, so a half-registered plugin
would silently serve SGLang's own implementation. Therefore every failure ends the process with the reason,
the attention backend has a name that only this plugin provides, and both the frontend (``_adjust_arguments``)
and every worker (``_create_sparse_backend``) check that what will serve is this package.

Touches on SGLang, in steps because importing its managers takes long and not every process needs them:

frontend and every other process, from the entry point ``sglang.srt.plugins``:
  config registry        our config class for ``model_type: minicpm_sala``
  external model package our model class for the architecture, before SGLang's own
  linear-attention spec  our backend of the lightning layers, and state snapshots for the prefix cache
  backend choices        the name ``sala``
  model overrides        the published backend names lead to ``sala``; SGLang's provider for its own is replaced
  resolution hook        page size, refusals, and the frontend's check
  argument parser        ``--dense-as-sparse``, which the published command lines use
  cpu_host.HOOKS         on machines without CUDA
frontend, when the arguments name this model:
  request checks         FastAPI's parsing of a body, SGLang's conversion, normalizing and tokenizing of a request
workers, when the model is built:
  attention registry     factory of ``sala``, with the worker's check
  KV pool                pool class with compressed keys, and their bytes in the size of a token
  prefix cache           keys that keep dense and sparse prompts apart, chunks and snapshots of whole pages
  request checks         logits where masks leave no token, and the error for a grammar that no token fits
  hierarchical cache     when it is on: states without a convolution, no storage backend, copies without CUDA
"""

import logging
import os
from typing import Any

from sala_sglang import (
    TESTED_SGLANG_VERSIONS,
    cpu_host,
    host_cache,
    options,
    prefill_graphs,
    prefix_cache,
    request_checks,
    tree_core,
)
from sala_sglang.config import SALAConfig
from sala_sglang.limits import check_arguments

logger = logging.getLogger(__name__)

ARCHITECTURE = "MiniCPMSALAForCausalLM"
BACKEND = "sala"
MODEL_PACKAGE = "sala_sglang.models"
# Names under which published command lines ask for block-sparse attention.
ACCEPTED_BACKENDS = (None, BACKEND, "minicpm_flashinfer", "minicpm_flashattn")

_done: set[str] = set()
_hook_targets: set[str] = set()


def register() -> None:
    """Entry point of ``sglang.srt.plugins``; runs in every SGLang process. Idempotent.

    Raises SystemExit, which SGLang does not swallow, when the registration fails.
    """
    if options.is_set(options.DISABLE) or "register" in _done:
        return
    try:
        _warn_of_untested_version()
        _register()
    except Exception as error:
        raise SystemExit(
            f"sala-sglang could not register with SGLang: {error!r}. Tested SGLang versions: "
            f"{', '.join(TESTED_SGLANG_VERSIONS)}. Set {options.DISABLE}=1 to run SGLang without the plugin."
        ) from error
    _done.add("register")


def prepare_worker(config: SALAConfig) -> None:
    """The touches that only a process with the model needs; called when the model is built. Idempotent."""
    if "worker" in _done:
        return
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.runtime_context import get_memory

    register_attention_backend(BACKEND)(_create_sparse_backend)
    _hook(
        "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator._hybrid_full_attention_pool_class",
        _pool_class,
        HookType.AFTER,
    )
    _hook(
        "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size",
        _cell_size,
        HookType.AFTER,
    )
    _hook_around(prefix_cache.hooks(config) | request_checks.worker_hooks())
    if get_memory().enable_hierarchical_cache:
        _hook_around(host_cache.hooks())
        if cpu_host.without_cuda():
            cpu_host.provide_host_copies()
    HookRegistry.apply_hooks()
    _check_hooks()
    _done.add("worker")


def _prepare_frontend() -> None:
    """The touches that only the process of the HTTP server needs. Idempotent."""
    if "frontend" in _done:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry

    _hook_around(request_checks.hooks())
    HookRegistry.apply_hooks()
    _check_hooks()
    _done.add("frontend")


def _warn_of_untested_version() -> None:
    from importlib.metadata import version

    found = version("sglang")
    if found not in TESTED_SGLANG_VERSIONS:
        tested = ", ".join(TESTED_SGLANG_VERSIONS)
        logger.warning("sala-sglang was tested with SGLang %s; this is SGLang %s", tested, found)


def _register() -> None:
    from sglang.srt.arg_groups import model_override_base
    from sglang.srt.arg_groups.choices import add_attention_backend_choices
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook
    from sglang.srt.configs.linear_attn_model_registry import LinearAttnModelSpec, register_linear_attn_model
    from sglang.srt.plugins.hook_registry import HookType
    from sglang.srt.utils.hf_transformers import common
    from transformers import AutoConfig

    common._CONFIG_REGISTRY[SALAConfig.model_type] = SALAConfig
    AutoConfig.register(SALAConfig.model_type, SALAConfig, exist_ok=True)
    _register_model_package()
    register_linear_attn_model(
        LinearAttnModelSpec(
            config_class=SALAConfig,
            backend_class_name="sala_sglang.attention.lightning_backend.LightningBackend",
            arch_names=[ARCHITECTURE],
            support_mamba_cache_extra_buffer=True,
        )
    )
    add_attention_backend_choices([BACKEND])
    model_override_base._MODEL_OVERRIDE_FNS[ARCHITECTURE] = [_model_overrides]
    register_resolution_hook("handle_cuda_graph_config")(_limit_prefill_graphs)
    register_resolution_hook("handle_model_specific_adjustments")(_adjust_arguments)
    _hook("sglang.srt.server_args.ServerArgs.add_cli_args", _add_cli_args, HookType.AFTER)
    _hook("sglang.srt.server_args.ServerArgs.from_cli_args", _from_cli_args, HookType.AROUND)
    if cpu_host.without_cuda():
        _hook_around(cpu_host.HOOKS)
    # SGLang applies the hooks when all plugins have registered theirs.


def _register_model_package() -> None:
    variable = "SGLANG_EXTERNAL_MODEL_PACKAGE"
    if os.environ.setdefault(variable, MODEL_PACKAGE) != MODEL_PACKAGE:
        # The user has a package of their own there; add ours to the registry itself.
        from sglang.srt.models.registry import ModelRegistry

        ModelRegistry.register(MODEL_PACKAGE, overwrite=True, strict=True)


def _hook(target: str, function, hook_type) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    HookRegistry.register(target, function, hook_type)
    _hook_targets.add(target)


def _hook_around(functions: dict[str, Any]) -> None:
    from sglang.srt.plugins.hook_registry import HookType

    for target, function in functions.items():
        _hook(target, function, HookType.AROUND)


def _check_hooks() -> None:
    """Raise for a hook that SGLang could not apply, which it only logs."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    if failed := _hook_targets - HookRegistry._patched:
        raise RuntimeError(f"SGLang has no {', '.join(sorted(failed))}")


def _add_cli_args(result, parser) -> None:
    parser.add_argument(
        "--dense-as-sparse",
        action="store_true",
        help="MiniCPM-SALA: select blocks at every length instead of from dense_len on.",
    )


def _from_cli_args(original, cls, args):
    if getattr(args, "dense_as_sparse", False):
        os.environ[options.DENSE_AS_SPARSE] = "1"  # workers inherit the environment
    return original(cls, args)


def _limit_prefill_graphs(server_args: Any, previous) -> None:
    """Declare a default for this model before SGLang reads it."""
    from sglang.srt.arg_groups.overrides import declare_resolution, model_config_of

    if ARCHITECTURE in (getattr(model_config_of(server_args).hf_config, "architectures", None) or ()):
        declare_resolution(server_args, __name__, **prefill_graphs.default_size(server_args))
    previous(server_args)


def _adjust_arguments(server_args: Any, previous) -> None:
    """Refuse what cannot be served, fix the page size before SGLang decides on snapshots, check the outcome."""
    from sglang.srt.arg_groups.overrides import model_config_of, resolution_result

    model = model_config_of(server_args)
    config = model.hf_config
    if ARCHITECTURE not in (getattr(config, "architectures", None) or ()):
        return previous(server_args)
    if not isinstance(config, SALAConfig):
        raise RuntimeError(f"{ARCHITECTURE} is configured by {type(config)}, not by sala-sglang")
    _check_hooks()
    check_arguments(server_args, config, model.dtype)
    options.dense_len_tokens(config)
    options.snapshot_spacing_tokens()
    tree_core.use_python_with_another_torch()
    _declare_sizes(server_args, config)
    previous(server_args)
    _prepare_frontend()
    if resolution_result(server_args, "attention_backend") != BACKEND:
        raise RuntimeError(f"attention backend {BACKEND!r} was overridden; sala-sglang would not serve")


def _declare_sizes(server_args: Any, config: SALAConfig) -> None:
    """Pages are sparse blocks, prefill chunks are whole pages, and pools on a CPU are small."""
    from sglang.srt.arg_groups.overrides import declare_resolution, resolution_result

    page = config.sparse_geometry.block_size
    declare_resolution(server_args, __name__, page_size=page)
    chunk = resolution_result(server_args, "chunked_prefill_size")
    if chunk is not None and chunk > 0 and chunk % page:
        whole_pages = max(page, chunk // page * page)
        logger.warning("Prefill chunks are whole pages: chunked_prefill_size %d becomes %d", chunk, whole_pages)
        declare_resolution(server_args, __name__, chunked_prefill_size=whole_pages)
    if resolution_result(server_args, "device") == "cpu":
        unset = {name: size for name, size in cpu_host.MEMORY_DEFAULTS.items() if getattr(server_args, name) is None}
        declare_resolution(server_args, __name__, **unset)


def _model_overrides(server_args: Any, hf_config: Any) -> dict:
    overrides = {"attention_backend": BACKEND}
    for field in ("attention_backend", "prefill_attention_backend", "decode_attention_backend"):
        # The user's own input: on a CPU SGLang has already declared a default of its own.
        value = getattr(server_args, field)
        if value not in ACCEPTED_BACKENDS:
            names = ", ".join(repr(name) for name in ACCEPTED_BACKENDS if name)
            raise ValueError(f"MiniCPM-SALA: {field} = {value!r} cannot select blocks; allowed: {names}")
        if value is not None:
            overrides[field] = BACKEND
    return overrides


def _create_sparse_backend(runner: Any):
    """Factory of the ``sala`` backend; checks that model, pool and page size of this worker are ours."""
    from sala_sglang.attention.pools import SalaKVPool
    from sala_sglang.attention.sparse_backend import SparseBackend
    from sala_sglang.models.minicpm_sala import MiniCPMSALAForCausalLM

    pool = getattr(runner.token_to_kv_pool, "full_kv_pool", None)
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


def _pool_class(result: type, configurator: Any, **pool_classes: type) -> type | None:
    config = configurator.model_config.hf_config
    if not isinstance(config, SALAConfig):
        return None  # keep SGLang's choice
    from sala_sglang.attention.pools import pool_class

    return pool_class(config.sparse_geometry)


def _cell_size(result: int, configurator: Any, kvc: Any, num_layers: int) -> int | None:
    config = kvc.model_config.hf_config
    if not isinstance(config, SALAConfig):
        return None
    from sglang.srt.runtime_context import get_parallel

    kv_heads = kvc.model_config.get_num_kv_heads(get_parallel().attn_tp_size)
    itemsize = kvc.kv_cache_dtype.itemsize
    geometry = config.sparse_geometry
    return result + geometry.compressed_bytes_per_token(num_layers, kv_heads, config.head_dim, itemsize)
