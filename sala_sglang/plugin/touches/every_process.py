"""Touches of every process: ``entry_point.py``, ``server_arguments.py``, ``hooks.py`` and ``cpu.py``."""

from sala_sglang.plugin.touches.touch import AFTER, AROUND, EVERY, NO_CUDA, OFFICIAL, PRIVATE, REGISTRY, VARIABLE, Touch

_REGISTRIES = (
    Touch(
        target="sglang.srt.plugins",
        how=REGISTRY,
        process=EVERY,
        why="the entry point group in which SGLang finds this plugin, sala",
        until=OFFICIAL,
        upstream="sgl-project/sglang#21388",
    ),
    Touch(
        target="sglang.srt.plugins.hook_registry.HookRegistry",
        how=REGISTRY,
        process=EVERY,
        why="takes the hooks below; those of frontend and workers come when SGLang has applied the others, so they are "
        "applied by a call of their own",
        until=OFFICIAL,
        upstream="sgl-project/sglang#21388",
    ),
    Touch(
        target="sglang.srt.plugins.hook_registry.HookRegistry._patched",
        how=PRIVATE,
        process=EVERY,
        why="the only place that tells whether a hook was applied: SGLang logs the failure and goes on",
        until="SGLang says which hooks were applied",
        upstream="sgl-project/sglang#38915",
    ),
    Touch(
        target="sglang.srt.utils.hf_transformers.common._CONFIG_REGISTRY",
        how=REGISTRY,
        process=EVERY,
        why="config.json is read by our class, which refuses what cannot be served; SGLang's leads to its own backend",
        until="a plugin can name the configuration class of a model type, with no argument from the user",
        upstream="sgl-project/sglang#25050",
    ),
    Touch(
        target="transformers.AutoConfig.register",
        how=REGISTRY,
        process=EVERY,
        why="the same for what reads the configuration through transformers",
        until="stays: transformers is extended this way",
    ),
    Touch(
        target="SGLANG_EXTERNAL_MODEL_PACKAGE",
        how=VARIABLE,
        process=EVERY,
        why="our model class comes before SGLang's own of the same architecture",
        until=OFFICIAL,
        upstream="sgl-project/sglang#13429",
    ),
    Touch(
        target="sglang.srt.models.registry.ModelRegistry.register",
        how=REGISTRY,
        process=EVERY,
        when="the user has another package in SGLANG_EXTERNAL_MODEL_PACKAGE",
        why="the variable holds one package, so ours joins the registry itself",
        until="the variable takes several packages",
    ),
    Touch(
        target="sglang.srt.configs.linear_attn_model_registry.register_linear_attn_model",
        how=REGISTRY,
        process=EVERY,
        why="names the backend of the lightning layers, and that the prefix cache may take snapshots of their states",
        until=OFFICIAL,
        upstream="sgl-project/sglang#21983",
    ),
    Touch(
        target="sglang.srt.arg_groups.choices.add_attention_backend_choices",
        how=REGISTRY,
        process=EVERY,
        why="adds the name of the attention backend, sala",
        until=OFFICIAL,
    ),
    Touch(
        target="sglang.srt.arg_groups.model_override_base._MODEL_OVERRIDE_FNS",
        how=REGISTRY,
        process=EVERY,
        why="the published backend names lead to sala; SGLang's own entry turns the prefix cache off and refuses the "
        "hierarchical cache, and its register_model_override would keep that entry",
        until="a plugin can replace the overrides of an architecture",
    ),
    Touch(
        target="sglang.srt.arg_groups.resolution_hooks.register_resolution_hook",
        how=REGISTRY,
        process=EVERY,
        why="around handle_model_specific_adjustments: refusals, page size, and the check that nothing overrode the "
        "backend; around handle_cuda_graph_config: the largest prefill graph",
        until=OFFICIAL,
        upstream="sgl-project/sglang#39134",
    ),
    Touch(
        target="sglang.srt.arg_groups.overrides.declare_resolution",
        how=REGISTRY,
        process=EVERY,
        why="page size, whole pages in a prefill chunk, sizes of prefill graphs, and of the pools on a CPU",
        until=OFFICIAL,
    ),
)

_COMMAND_LINE = (
    Touch(
        target="sglang.srt.server_args.ServerArgs.add_cli_args",
        how=AFTER,
        process=EVERY,
        why="adds --dense-as-sparse, which published command lines use",
        until="a plugin can add arguments",
    ),
    Touch(
        target="sglang.srt.server_args.ServerArgs.from_cli_args",
        how=AROUND,
        process=EVERY,
        why="reads --dense-as-sparse, which SGLang would drop",
        until="a plugin can add arguments",
    ),
    Touch(
        target="SGLANG_MINICPM_DENSE_AS_SPARSE",
        how=VARIABLE,
        process=EVERY,
        why="what --dense-as-sparse sets, for the workers; SGLang's own backend of this model reads it too, so scripts "
        "written for that one keep working",
        until="stays: the name is part of published scripts",
    ),
    Touch(
        target="SGLANG_MINICPM_FORCE_DENSE",
        how=VARIABLE,
        process=EVERY,
        why="read with the meaning that it has for SGLang's own backend of this model",
        until="stays: the name is part of published scripts",
    ),
    Touch(
        target="SGLANG_MAMBA_SSM_DTYPE",
        how=VARIABLE,
        process=EVERY,
        why="what --mamba-ssm-dtype sets; another value than float32 is refused",
        until="stays: states are float32",
    ),
    Touch(
        target="SGLANG_PP_LAYER_PARTITION",
        how=VARIABLE,
        process=EVERY,
        when="--pp-size",
        why="gets the division of layers whose slowest stage is fastest, where the user wrote none",
        until="a model can tell SGLang how its layers are divided",
    ),
)

_QUANTIZATION = (
    Touch(
        target="SGLANG_FP8_IGNORED_LAYERS",
        how=VARIABLE,
        process=EVERY,
        when="--quantization fp8",
        why="names of layers that are merged here are refused: SGLang would look for them in vain, and quantise them",
        until="SGLang resolves them by the model's merged layers",
    ),
    Touch(
        target="sglang.srt.configs.model_config.ModelConfig._verify_quantization",
        how=AROUND,
        process=EVERY,
        why="a quantised checkpoint is served by the plan of its layers: SGLang's classes ask by names of merged "
        "layers, which leave layers out or quantise what is not, and refuse most formats without a GPU",
        until="stays: SGLang asks a model for the schemes of its layers",
    ),
    Touch(
        target="sglang.srt.layers.quantization.QUANTIZATION_METHODS",
        how=REGISTRY,
        process=EVERY,
        when="the checkpoint is quantised",
        why="the plan of the checkpoint is entered as a method named sala",
        until=OFFICIAL,
    ),
)

_CPU = (
    Touch(
        target="torch.Tensor.pin_memory",
        how=AROUND,
        process=EVERY,
        when=NO_CUDA,
        why="pinning needs a driver",
        until="SGLang pins only where there is an accelerator",
    ),
    Touch(
        target="sglang.srt.arg_groups.mamba_hook._platform_supports_mamba_cache_extra_buffer",
        how=AROUND,
        process=EVERY,
        when=NO_CUDA,
        why="snapshots of recurrent states are plain tensor writes on a CPU, but SGLang names the platforms that may",
        until="SGLang allows them on a CPU",
        upstream="sgl-project/sglang#37705",
    ),
    Touch(
        target="sglang.srt.distributed.parallel_state.GroupCoordinator.__init__",
        how=AROUND,
        process=EVERY,
        when=NO_CUDA,
        why="NCCL's communicator can only live on a GPU",
        until="SGLang leaves it out on a CPU",
    ),
    Touch(
        target="sglang.srt.configs.update_config.adjust_config_with_unaligned_cpu_tp",
        how=AROUND,
        process=EVERY,
        when=NO_CUDA,
        why="SGLang pads head counts that ranks do not divide; this model replicates KV heads instead",
        until="a model can keep its head counts",
        upstream="sgl-project/sglang#6771",
    ),
)

TOUCHES = (*_REGISTRIES, *_COMMAND_LINE, *_QUANTIZATION, *_CPU)
