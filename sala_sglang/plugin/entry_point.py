"""Registration with SGLang: what every process gets.

SGLang knows the architecture itself and only logs what goes wrong in a plugin, so a half-registered plugin
would silently serve SGLang's own implementation. Therefore every failure ends the process with the reason,
the attention backend has a name that only this plugin provides, and both the frontend (``adjust_arguments``)
and every worker (``create_sparse_backend``) check that what will serve is this package.

SGLang is touched in three steps, because importing its managers takes long and not every process needs them: here, in
``http_requests.prepare_frontend`` and in ``worker.prepare_worker``. ``touches/`` lists every touch.
"""

import logging
import os

from sala_sglang import TESTED_SGLANG_VERSIONS, environment
from sala_sglang.attention import BACKEND
from sala_sglang.config import ARCHITECTURE, SALAConfig
from sala_sglang.plugin import adapter_ids, cpu, draft_model, quantization, server_arguments
from sala_sglang.plugin.hooks import hook_after, hook_around
from sala_sglang.plugin.lifetime import end_with_parent

logger = logging.getLogger(__name__)

MODEL_PACKAGE = "sala_sglang.plugin.model_package"

_done: set[str] = set()


def register() -> None:
    """Entry point of ``sglang.srt.plugins``; runs in every SGLang process. Idempotent.

    Raises SystemExit, which SGLang does not swallow, when the registration fails.
    """
    if environment.is_set(environment.DISABLE) or "register" in _done:
        return
    try:
        _warn_of_untested_version()
        _register()
    except Exception as error:
        raise SystemExit(
            f"sala-sglang could not register with SGLang: {error!r}. Tested SGLang versions: "
            f"{', '.join(TESTED_SGLANG_VERSIONS)}. Set {environment.DISABLE}=1 to run SGLang without the plugin."
        ) from error
    end_with_parent()
    _done.add("register")


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
            hybrid_backend_class_name="sala_sglang.speculation.hybrid_backend.SalaHybridBackend",
        )
    )
    add_attention_backend_choices([BACKEND])
    model_override_base._MODEL_OVERRIDE_FNS[ARCHITECTURE] = [server_arguments.model_overrides]
    register_resolution_hook("handle_cuda_graph_config")(server_arguments.limit_prefill_graphs)
    register_resolution_hook("handle_model_specific_adjustments")(server_arguments.adjust_arguments)
    hook_after({"sglang.srt.server_args.ServerArgs.add_cli_args": server_arguments.add_cli_args})
    hook_around({"sglang.srt.server_args.ServerArgs.from_cli_args": server_arguments.from_cli_args})
    hook_around(quantization.HOOKS | adapter_ids.HOOKS | draft_model.CONFIG_HOOKS)
    if cpu.without_cuda():
        hook_around(cpu.HOOKS)
    # SGLang applies the hooks when all plugins have registered theirs.


def _register_model_package() -> None:
    variable = "SGLANG_EXTERNAL_MODEL_PACKAGE"
    if os.environ.setdefault(variable, MODEL_PACKAGE) != MODEL_PACKAGE:
        # The user has a package of their own there; add ours to the registry itself.
        from sglang.srt.models.registry import ModelRegistry

        ModelRegistry.register(MODEL_PACKAGE, overwrite=True, strict=True)
