"""Random LoRA adapters in PEFT's files, and the plain model with one merged into its weights."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sala_sglang.hf import MiniCPMSALAForCausalLM

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_gate", "z_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "base_model_name_or_path": None}
STRENGTH = 0.3  # of the change against a weight


def write_adapter(
    folder: Path,
    model: MiniCPMSALAForCausalLM,
    targets: Iterable[str] = ALL_LINEAR,
    rank: int = 4,
    seed: int = 0,
    **config,
) -> Path:
    """An adapter that changes each of its layers by about STRENGTH of its weight; ``config`` joins adapter_config.json.

    rank_pattern and alpha_pattern are read as plain names of layers.
    """
    generator, tensors = torch.Generator().manual_seed(seed), {}
    targets = list(targets)
    given = CONFIG | {"r": rank, "lora_alpha": 2 * rank, "target_modules": targets} | config
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in targets:
            outputs, inputs = module.weight.shape
            own_rank, scaling = scaling_of(name, given)
            spread = float(module.weight.std()) * STRENGTH / scaling / math.sqrt(own_rank)
            down = torch.randn(own_rank, inputs, generator=generator)
            up = torch.randn(outputs, own_rank, generator=generator) * spread
            tensors |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(given))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def scaling_of(name: str, config: dict) -> tuple[int, float]:
    """Rank of a layer and the factor of its product, as PEFT defines them."""
    layer = name.rsplit(".", 1)[-1]
    rank = config.get("rank_pattern", {}).get(layer, config["r"])
    alpha = config.get("alpha_pattern", {}).get(layer, config["lora_alpha"])
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


@torch.no_grad()
def merge(model: MiniCPMSALAForCausalLM, adapter: Path) -> MiniCPMSALAForCausalLM:
    """``W + scaling * B A`` in the weights of ``model``, in place."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name, module in model.named_modules():
        down = tensors.get(f"base_model.model.{name}.lora_A.weight")
        if down is not None:
            up = tensors[f"base_model.model.{name}.lora_B.weight"]
            module.weight += (scaling_of(name, config)[1] * up.double() @ down.double()).to(module.weight.dtype)
    return model
