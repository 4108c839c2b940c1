"""Quantised checkpoints on their way through SGLang: one method for all of them, with the plan of their layers.

SGLang would ask the class of each format for the method of every layer, by names that merged layers do not have; some
classes then leave layers out, and some are not there without a GPU.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sala_sglang.config import SALAConfig
from sala_sglang.models.merged_projections import GATES, kv_copies, merged_parts
from sala_sglang.quantization import METHOD
from sala_sglang.quantization.checkpoint_files import find_configuration
from sala_sglang.quantization.plan import read_plan

NO_UPDATES = (
    "MiniCPM-SALA: weights of a quantised model cannot be replaced, because after loading they have the layout of "
    "their products; allowed: a new server"
)
# Layers that --quantization fp8 leaves alone, by the names of this model's layers.
IGNORED_LAYERS = "SGLANG_FP8_IGNORED_LAYERS"
QKVG = "self_attn.qkvg_proj"
# (field, the values that work with a quantised checkpoint, what is missing for the others)
LIMITS = (
    ("load_format", ("auto", "safetensors"), "the headers of the files are read before the weights"),
    ("enable_lora", (False, None), "adapters were not tried with quantised checkpoints"),
)


def verify_quantization(original: Callable, model_config: Any) -> None:
    """Make the plan of a quantised checkpoint and enter it in SGLang's registry; leave all others to SGLang.

    Raises ValueError for a checkpoint that cannot be served, from its configuration and the headers of its files.
    """
    config = model_config.hf_config
    folder = Path(model_config.model_path)
    given = find_configuration(folder, config) if isinstance(config, SALAConfig) else None
    if given is None:
        return original(model_config)
    if not folder.is_dir():
        folder = _download(model_config)
    from sglang.srt.layers.quantization import QUANTIZATION_METHODS

    from sala_sglang.quantization.methods import PlannedConfig

    plan = read_plan(config, given, folder)
    asked = (None, METHOD, *plan.names)
    if model_config.quantization not in asked:
        shown = ", ".join(repr(name) for name in asked if name != METHOD)
        raise ValueError(
            f"MiniCPM-SALA: quantization = {model_config.quantization!r} is not supported (the checkpoint is quantised "
            f"by {plan.method}); allowed: {shown}"
        )
    QUANTIZATION_METHODS[METHOD] = PlannedConfig(plan)
    model_config.quantization = METHOD


def _download(model_config: Any) -> Path:
    """The checkpoint's folder in the cache of the hub; SGLang would download the same files later."""
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json"]
    return Path(snapshot_download(model_config.model_path, revision=model_config.revision, allow_patterns=patterns))


def is_planned(model_config: Any) -> bool:
    """Whether the checkpoint is a quantised one."""
    return model_config.quantization == METHOD


def check_ranks(config: SALAConfig, ranks: int, device: str) -> None:
    """Raise ValueError where the layers of the planned checkpoint cannot be cut for ``ranks``."""
    from sglang.srt.layers.quantization import QUANTIZATION_METHODS

    plan = QUANTIZATION_METHODS[METHOD].plan

    def outputs(linear: str) -> int:
        copied = linear.endswith((".k_proj", ".v_proj"))
        copies = kv_copies(config, config.layer_kinds[int(linear.split(".")[2])], ranks) if copied else 1
        return plan.shapes[f"{linear}.weight"][0] * copies

    plan.check_ranks(outputs, ranks, on_gpu=device != "cpu")


def check_online() -> None:
    """Raise ValueError for a layer in SGLang's list of those that stay in 16 bits which the list would not find."""
    given = [name.strip() for name in os.environ.get(IGNORED_LAYERS, "").split(",")]
    parts = {part.split(".")[1] for kind in GATES for part in merged_parts(kind)[QKVG]}
    if merged := [name for name in given if name.split(".")[-1] in parts]:
        raise ValueError(
            f"{IGNORED_LAYERS} = {merged} is not possible (SGLang quantises a merged layer as one); allowed: qkvg_proj "
            "for q, k, v and gate, o_proj, gate_up_proj, down_proj"
        )


def refuse_updates(original: Callable, model: Any = None) -> str | None:
    """What SGLang answers to a request that would replace weights; None where it may."""
    return original(model) if getattr(model, "quant_config", None) is None else NO_UPDATES


# SGLang's functions and what runs around them: in every process, and in those with the model.
HOOKS: dict[str, Callable] = {
    "sglang.srt.configs.model_config.ModelConfig._verify_quantization": verify_quantization,
}
WORKER_HOOKS: dict[str, Callable] = {
    "sglang.srt.model_executor.model_runner_components.weight_updater._unsupported_derived_weight_cache_error": (
        refuse_updates
    ),
}
