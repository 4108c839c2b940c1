"""Arguments of a server: those with which MiniCPM-SALA cannot be served are refused, the others get its defaults."""

import argparse
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from sala_kernels.kv_scales import FIRST_CAPABILITY

from sala_sglang import environment
from sala_sglang.attention import BACKEND
from sala_sglang.config import ARCHITECTURE, SALAConfig
from sala_sglang.models.merged_projections import GATES
from sala_sglang.models.pipeline import check_both_kinds, divide_layers
from sala_sglang.models.sharding import check_tensor_parallel
from sala_sglang.plugin import cpu, disaggregation, draft_model, hierarchical_cache, quantization, speculation
from sala_sglang.plugin.argument_table import TABLE, fixed_limits, without_effect
from sala_sglang.plugin.hooks import check_hooks
from sala_sglang.plugin.http_requests import prepare_frontend, prepare_http_workers
from sala_sglang.plugin.lifetime import have_children_end
from sala_sglang.plugin.prefix_cache import use_python_tree_with_another_torch

logger = logging.getLogger(__name__)

# (field, the values that work, what is missing for the others)
ARGUMENT_LIMITS = fixed_limits()
# Methods of SGLang that quantize weights of 16 bits while they are loaded, and have no other products than GPUs'.
ONLINE_QUANTIZATION = ("fp8", "w8a8_fp8")
# Names under which published command lines ask for block-sparse attention.
ACCEPTED_BACKENDS = (None, BACKEND, "minicpm_flashinfer", "minicpm_flashattn")
# Up to which size prefill steps are captured as CUDA graphs. Longer ones hide their launches behind their kernels: at
# 8,192 tokens the GPU is idle for 1 % of a step; that 512 are enough is an estimate. And a captured step computes the
# last layer for all of its rows, where others do so for those whose logits are read (models/last_rows.py).
MAX_PREFILL_GRAPH_TOKENS = 512
_GRAPH_BACKENDS = {"decode": ("full", "disabled"), "prefill": ("breakable", "disabled")}
FP8_CACHE = "fp8_e4m3"
DEFAULT_LORA_BACKEND, CPU_LORA_BACKEND = "csgmv", "torch_native"
# What the model's family writes: calls in XML, thoughts in <think>. SGLang's detection of "auto" goes by words in the
# template, and takes one with <think> for a model that always thinks.
PARSER_DEFAULTS = {"tool_call_parser": "minicpm5", "reasoning_parser": "qwen3"}


def add_cli_args(result: None, parser: argparse.ArgumentParser) -> None:
    """Add ``--dense-as-sparse``, which published command lines use, and the gates as targets of LoRA."""
    parser.add_argument(
        "--dense-as-sparse",
        action="store_true",
        help="MiniCPM-SALA: select blocks at every length instead of from dense_len on.",
    )
    # By the released names of the layers; SGLang lists those of other models.
    targets = parser._option_string_actions["--lora-target-modules"]
    targets.choices = [*(targets.choices or ()), *GATES.values()]


def from_cli_args(original: Callable, cls: type, args: argparse.Namespace) -> Any:
    """SGLang's arguments; what it does not know goes into the environment, which workers inherit."""
    if getattr(args, "dense_as_sparse", False):
        os.environ[environment.DENSE_AS_SPARSE] = "1"
    return original(cls, args)


def limit_prefill_graphs(server_args: Any, previous: Callable) -> None:
    """Declare a default for this model before SGLang reads it."""
    from sglang.srt.arg_groups.overrides import declare_resolution, model_config_of

    if _is_ours(model_config_of(server_args).hf_config):
        declare_resolution(server_args, __name__, **prefill_graph_default(server_args))
    previous(server_args)


def prefill_graph_default(server_args: Any) -> dict[str, int]:
    """The ``cuda_graph_max_bs_prefill`` to declare where the user named no sizes; else empty. SGLang: whole chunks."""
    from sglang.srt.arg_groups.overrides import resolution_result

    sizes = "cuda_graph_max_bs_prefill", "cuda_graph_bs_prefill", "cuda_graph_config"
    named = any(resolution_result(server_args, name) for name in sizes)
    return {} if named else {"cuda_graph_max_bs_prefill": MAX_PREFILL_GRAPH_TOKENS}


def parser_defaults(server_args: Any) -> dict[str, str]:
    """The parsers of tool calls and thoughts to declare where the user named none, or asked for those that fit."""
    from sglang.srt.arg_groups.overrides import resolution_result

    return {
        name: parser
        for name, parser in PARSER_DEFAULTS.items()
        if resolution_result(server_args, name) in (None, "auto")
    }


def adjust_arguments(server_args: Any, previous: Callable) -> None:
    """Refuse what cannot be served, fix the page size before SGLang decides on snapshots, check the outcome."""
    from sglang.srt.arg_groups.overrides import declare_resolution, model_config_of, resolution_result

    from sala_sglang.plugin.memory_defaults import declare_memory_defaults

    model = model_config_of(server_args)
    config = model.hf_config
    if not _is_ours(config):
        previous(server_args)
        return
    if not isinstance(config, SALAConfig):
        raise RuntimeError(f"{ARCHITECTURE} is configured by {type(config)}, not by sala-sglang")
    check_hooks()
    check_config(server_args, config)
    check_arguments(server_args, config, model)
    draft_model.check(server_args, model)
    divide_stages(config, *(resolution_result(server_args, name) for name in ("pp_size", "enable_hierarchical_cache")))
    warn_without_effect(server_args)
    environment.dense_len_tokens(config)
    environment.snapshot_spacing_tokens()
    environment.check_state_dtype()
    environment.forced_paths()
    environment.own_rows()
    use_python_tree_with_another_torch()
    _declare_sizes(server_args, config)
    declare_memory_defaults(server_args, config, model)
    declare_resolution(server_args, __name__, **parser_defaults(server_args))
    previous(server_args)
    prepare_frontend()
    if resolution_result(server_args, "tokenizer_worker_num") > 1:
        prepare_http_workers()
    have_children_end()
    if resolution_result(server_args, "attention_backend") != BACKEND:
        raise RuntimeError(f"attention backend {BACKEND!r} was overridden; sala-sglang would not serve")


def check_config(server_args: Any, config: SALAConfig) -> None:
    """Raise ValueError for what ``--json-model-override-args`` made of ``config`` after it had been checked."""
    from sglang.srt.arg_groups.overrides import resolution_result

    fields = [field.name for field in dataclasses.fields(config)]
    given = json.loads(resolution_result(server_args, "json_model_override_args"))
    if unknown := [name for name in given if name not in fields]:
        raise ValueError(
            f"MiniCPM-SALA: json_model_override_args = {unknown} is not supported (config.json has no such fields); "
            f"allowed: {', '.join(fields)}"
        )
    config.check()


def check_arguments(server_args: Any, config: SALAConfig, model: Any) -> None:
    """Raise ValueError for the first argument that has a value other than those that work.

    model: SGLang's ModelConfig, which knows dtype and quantization of the checkpoint.
    """
    from sglang.srt.arg_groups.overrides import resolution_result

    def found(field: str) -> Any:
        return resolution_result(server_args, field)

    device = found("device")
    check_limits(found, ARGUMENT_LIMITS)
    check_limits(found, (_cache_limit(model.dtype, device, found("kv_cache_dtype")), _lora_limit(device)))
    check_limits({"speculative_algorithm": speculation.algorithm_of(found)}.get, [_speculation_limit()])
    check_limits(found, speculation.argument_limits(found))
    cache = found("enable_hierarchical_cache"), device, found("hicache_storage_backend")
    check_limits(found, hierarchical_cache.argument_limits(*cache))
    check_limits(found, disaggregation.argument_limits(found("disaggregation_mode")))
    if found("dp_size") > 1:
        check_limits(found, [("nccl_port", (None,), "with dp_size above 1 every replica needs a port of its own")])
    if quantization.is_planned(model):
        check_limits(found, quantization.LIMITS)
        quantization.check_ranks(config, found("tp_size"), device)
    else:
        check_limits({"quantization": model.quantization}.get, [_quantization_limit(device)])
        quantization.check_online()
    graphs = found("cuda_graph_config")
    backends = {f"cuda_graph_config[{phase}].backend": getattr(graphs, phase).backend for phase in _GRAPH_BACKENDS}
    check_limits(backends.get, [_graph_limit(phase) for phase in _GRAPH_BACKENDS])
    check_tensor_parallel(config, found("tp_size"))
    block = config.sparse_geometry.block_size
    if found("page_size") not in (None, block):
        raise ValueError(
            f"MiniCPM-SALA: page_size = {found('page_size')} is not supported; allowed: {block}, the sparse block"
        )


def divide_stages(config: SALAConfig, stages: int, with_host: bool) -> None:
    """Divide the layers over pipeline stages; with_host: pages and states of every one are copied to host memory."""
    divide_layers(config, stages)
    if with_host and stages > 1:
        check_both_kinds(config, stages)


def check_limits(found: Callable[[str], Any], limits: Iterable[tuple[str, tuple, str]]) -> None:
    """Raise ValueError for the first field whose value, which ``found`` gives, is none of those that work."""
    for field, allowed, reason in limits:
        value = found(field)
        if value not in allowed:
            shown = ", ".join(map(repr, allowed))
            raise ValueError(f"MiniCPM-SALA: {field} = {value!r} is not supported ({reason}); allowed: {shown}")


def warn_without_effect(server_args: Any) -> None:
    """Name the arguments that the user set and that cannot touch this model."""
    import msgspec

    defaults = {field.name: field for field in msgspec.structs.fields(type(server_args))}
    for name, lacks in without_effect().items():
        field, value = defaults[name], getattr(server_args, name)
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if value != default:
            logger.warning("MiniCPM-SALA: %s = %r has no effect: it is for %s", name, value, lacks)


def model_overrides(server_args: Any, hf_config: Any) -> dict:
    """The attention backend of this model under every name by which published command lines ask for it."""
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


def _is_ours(config: Any) -> bool:
    return ARCHITECTURE in (getattr(config, "architectures", None) or ())


def _cache_limit(dtype: torch.dtype, device: str, asked: str) -> tuple[str, tuple, str]:
    names = ("bfloat16", "bf16") if dtype == torch.bfloat16 else ()
    if asked == FP8_CACHE and device == "cuda":  # asking CUDA takes memory
        capability = torch.cuda.get_device_capability()
        if capability < FIRST_CAPABILITY:
            has, needs = (".".join(map(str, pair)) for pair in (capability, FIRST_CAPABILITY))
            reason = f"Triton converts e4m3 on GPUs of compute capability {needs} and later, and this one has {has}"
            return "kv_cache_dtype", ("auto", *names), reason
    return "kv_cache_dtype", ("auto", *names, FP8_CACHE), "keys and values have the model's dtype, or e4m3 with scales"


def _speculation_limit() -> tuple[str, tuple, str]:
    return "speculative_algorithm", speculation.ALGORITHMS, _reason("speculative_algorithm")


def _quantization_limit(device: str) -> tuple[str, tuple, str]:
    allowed = (None,) if device == "cpu" else (None, *ONLINE_QUANTIZATION)
    return "quantization", allowed, _reason("quantization")


def _graph_limit(phase: str) -> tuple[str, tuple, str]:
    return f"cuda_graph_config[{phase}].backend", _GRAPH_BACKENDS[phase], _reason(f"cuda_graph_backend_{phase}")


def _reason(field: str) -> str:
    """What the table says is missing for the values that do not work."""
    return next(verdict.remark for verdict in TABLE if field in verdict.fields)


def _lora_limit(device: str) -> tuple[str, tuple, str]:
    if device == "cpu":
        return "lora_backend", (DEFAULT_LORA_BACKEND, CPU_LORA_BACKEND), "the others are written for GPUs"
    return (
        "lora_backend",
        (DEFAULT_LORA_BACKEND, "triton", CPU_LORA_BACKEND),
        "the others were not tried with this model",
    )


def _declare_sizes(server_args: Any, config: SALAConfig) -> None:
    """Pages are sparse blocks, prefill chunks are whole pages; on a CPU pools are small and LoRA is torch's."""
    from sglang.srt.arg_groups.overrides import declare_resolution, resolution_result

    page = config.sparse_geometry.block_size
    declare_resolution(server_args, __name__, page_size=page)
    chosen = speculation.defaults(lambda field: resolution_result(server_args, field))
    chosen |= disaggregation.defaults(resolution_result(server_args, "disaggregation_mode"))
    declare_resolution(server_args, __name__, **chosen)
    chunk = resolution_result(server_args, "chunked_prefill_size")
    if chunk is not None and chunk > 0 and chunk % page:
        whole_pages = max(page, chunk // page * page)
        logger.warning("Prefill chunks are whole pages: chunked_prefill_size %d becomes %d", chunk, whole_pages)
        declare_resolution(server_args, __name__, chunked_prefill_size=whole_pages)
    if resolution_result(server_args, "device") == "cpu":
        unset = {name: size for name, size in cpu.MEMORY_DEFAULTS.items() if getattr(server_args, name) is None}
        declare_resolution(server_args, __name__, **unset)
        if resolution_result(server_args, "lora_backend") == DEFAULT_LORA_BACKEND:
            declare_resolution(server_args, __name__, lora_backend=CPU_LORA_BACKEND)
