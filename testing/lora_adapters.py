"""Random LoRA adapters in PEFT's files, and what they change in the weights of a model."""

import json
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sala_sglang.checkpoint.make import weight_distribution
from sala_sglang.checkpoint.parameter_shapes import tensor_shapes
from sala_sglang.config import SALAConfig

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_gate", "z_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "base_model_name_or_path": None}
FRONT = "base_model.model."
STRENGTH = 0.3  # of the change against a weight


def write_adapter(
    folder: Path,
    config: SALAConfig,
    targets: Iterable[str] = ALL_LINEAR,
    rank: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **fields: Any,
) -> Path:
    """An adapter that changes each of its layers by about STRENGTH of its random weight.

    ``fields`` join adapter_config.json; keys of rank_pattern and alpha_pattern are plain names of layers.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    given: dict[str, Any] = CONFIG | {"r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets)} | fields
    for name, shape in tensor_shapes(config).items():
        linear = name.removesuffix(".weight")
        if linear.rsplit(".", 1)[-1] in given["target_modules"]:
            (outputs, inputs), (own_rank, scaling) = shape, scaling_of(linear, given)
            spread = weight_distribution(name, shape, config)[1] * STRENGTH / scaling / math.sqrt(own_rank)
            down = torch.randn(own_rank, inputs, generator=generator)
            up = torch.randn(outputs, own_rank, generator=generator) * spread
            tensors |= {f"{FRONT}{linear}.lora_A.weight": down, f"{FRONT}{linear}.lora_B.weight": up}
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(given))
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def scaling_of(linear: str, config: dict) -> tuple[int, float]:
    """Rank of a layer and the factor of its product, as PEFT defines them."""
    layer = linear.rsplit(".", 1)[-1]
    rank = config.get("rank_pattern", {}).get(layer, config["r"])
    alpha = config.get("alpha_pattern", {}).get(layer, config["lora_alpha"])
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def changes(adapter: Path, device: str = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
    """``scaling * B A`` of every layer of the adapter by the released name of its weight, in float32 or better."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors", device=device)
    work = torch.float64 if device == "cpu" else torch.float32
    for name, down in tensors.items():
        if name.endswith(".lora_A.weight"):
            linear = name.removeprefix(FRONT).removesuffix(".lora_A.weight")
            up = tensors[f"{FRONT}{linear}.lora_B.weight"]
            yield f"{linear}.weight", scaling_of(linear, config)[1] * up.to(work) @ down.to(work)


def merge_checkpoint(checkpoint: Path, adapter: Path, out: Path, device: str = "cpu") -> None:
    """The checkpoint with the adapter merged into its weights, each rounded once, under ``out``."""
    out.mkdir(parents=True)
    found = dict(changes(adapter, device))
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, out / file.name)
            continue
        with safe_open(file, "pt", device=device) as shard:
            tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118  not a dictionary
        for name in tensors.keys() & found.keys():
            tensors[name] = (tensors[name] + found[name]).to(tensors[name].dtype)
        save_file(tensors, out / file.name, metadata={"format": "pt"})
