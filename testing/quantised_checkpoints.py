"""Checkpoints in every format of quantised weights, rounded to nearest, and the weights for which they stand.

Written by the formats' own definitions, without a line of what serves them.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sala_sglang.checkpoint.make import TINY_CONFIG, Preset, write_weights
from sala_sglang.checkpoint.tokenizer import make_tokenizer
from sala_sglang.config import LIGHTNING, SPARSE

# A model whose layers on four ranks are blocks of 128 × 128, with two KV heads to copy there.
SIZES = TINY_CONFIG | {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "mixer_types": [SPARSE, LIGHTNING, LIGHTNING, SPARSE],
    "head_dim": 128,
    "lightning_head_dim": 128,
}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_gate", "z_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
INDEX = "model.safetensors.index.json"
E4M3_LARGEST = 448.0
# Places of the outputs of a group of eight in an int32 of AWQ, from the lowest bits up.
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)
Encoded = tuple[dict[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """format: a key of FORMATS. full: last names of linear layers that stay as they are. group: inputs of a scale.

    fields: join quantization_config. mixed: other formats of compressed-tensors, by last names of layers.
    """

    format: str
    full: tuple[str, ...] = ()
    group: int = 128
    bits: int = 4
    fields: dict[str, Any] = field(default_factory=dict)
    mixed: dict[str, str] = field(default_factory=dict)

    def encode(self, name: str, weight: torch.Tensor) -> "Encoded":
        """Tensors of a layer by suffix, and the weight [N, K] float32 for which they stand."""
        chosen = replace(self, format=self.mixed.get(name.split(".")[-2], self.format))
        return FORMATS[chosen.format].encode(weight.float(), chosen)

    def configuration(self) -> dict[str, Any]:
        """The ``quantization_config``."""
        given = FORMATS[self.format].configuration(self)
        for layer, other in self.mixed.items():
            alone = FORMATS[other].configuration(self)
            group = alone["config_groups"]["group_0"] | {"targets": [f"re:.*{layer}"], "format": alone["format"]}
            given["config_groups"][layer] = group
        return given | self.fields

    def applies(self, name: str) -> bool:
        """Whether the tensor ``name`` is quantised."""
        layer = name.split(".")[-2]
        return name.endswith(".weight") and layer in LINEAR and layer not in self.full


def make_source(out: Path, **sizes: int) -> Path:
    """A small checkpoint with random weights of 16 bits, to be quantised. sizes: other fields of config.json."""
    preset = Preset(shards=2, bpe_tokens=510, turn_end_id=510, turn_start_id=511, config=SIZES | sizes)
    config = preset.make_config()
    out.mkdir(parents=True)
    config.save_pretrained(out)
    make_tokenizer(out, preset.bpe_tokens, preset.turn_end_id, preset.turn_start_id)
    write_weights(config, out, preset.shards, seed=0)
    return out


def quantise(source: Path, out: Path, recipe: Recipe, device: str = "cpu") -> Path:
    """Write the checkpoint ``source`` in the format of ``recipe`` to ``out``, file by file."""
    out.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    for path in sorted(source.iterdir()):
        if path.suffix != ".safetensors":
            shutil.copy(path, out / path.name)
            continue
        found: dict[str, torch.Tensor] = {}
        for name, tensor in read(path, device):
            if recipe.applies(name):
                encoded, _ = recipe.encode(name, tensor)
                linear = name.removesuffix(".weight")
                found |= {f"{linear}.{suffix}": one.contiguous().cpu() for suffix, one in encoded.items()}
            else:
                found[name] = tensor.cpu()
        save_file(found, out / path.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(found, path.name)
    (out / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = recipe.configuration()
    (out / "config.json").write_text(json.dumps(config))
    return out


def dequantised(source: Path, recipe: Recipe, device: str = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
    """Every quantised weight of ``quantise``'s checkpoint, by its released name, in float32."""
    for path in sorted(source.glob("*.safetensors")):
        for name, tensor in read(path, device):
            if recipe.applies(name):
                yield name, recipe.encode(name, tensor)[1]


def read(path: Path, device: str) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(path, "pt", device=device) as shard:
        for name in shard.keys():  # noqa: SIM118  not a dictionary
            yield name, shard.get_tensor(name)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned codes [..., n] in int32 [..., n · bits / 32], the first one in the lowest bits."""
    parts = codes.long().unflatten(-1, (-1, 32 // bits))
    return sum(parts[..., place] << bits * place for place in range(32 // bits)).int()


def symmetric(weight: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Signed codes [N, K], float16 scales [N, K / group] and the weight for which they stand; group -1: all inputs."""
    grouped = weight.unflatten(1, (-1, weight.shape[1] if group == -1 else group))
    scales = (grouped.abs().amax(-1) / (2 ** (bits - 1) - 1)).half()
    step = scales.float()[..., None]
    codes = (grouped / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes.flatten(1), scales, (codes * step).flatten(1)


def gptq(weight: torch.Tensor, recipe: Recipe) -> Encoded:
    order = None
    if recipe.fields.get("desc_act"):
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.device)
    ordered = weight if order is None else weight[:, order]
    codes, scales, served = symmetric(ordered, recipe.bits, recipe.group)
    groups = torch.arange(weight.shape[1], device=weight.device) // (weight.shape[1] // scales.shape[1])
    if order is not None:
        back = order.argsort()
        codes, served, groups = codes[:, back], served[:, back], groups[back]
    half = 2 ** (recipe.bits - 1)
    version = 0 if recipe.fields.get("checkpoint_format") == "gptq_v2" else 1
    zeros = torch.full((scales.shape[1], weight.shape[0]), half - version, device=weight.device)
    return {
        "qweight": pack(codes + half, recipe.bits).t(),
        "scales": scales.t(),
        "qzeros": pack(zeros, recipe.bits),
        "g_idx": groups.int(),
    }, served


def awq(weight: torch.Tensor, recipe: Recipe) -> Encoded:
    grouped = weight.unflatten(1, (-1, recipe.group))
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(0, 15)
    codes = (grouped / scales.float()[..., None] + zeros[..., None]).round().clamp(0, 15)
    served = ((codes - zeros[..., None]) * scales.float()[..., None]).flatten(1)
    places = torch.tensor(AWQ_PLACES, device=weight.device)
    columns, zero_columns = (
        pack(rows.t().unflatten(1, (-1, 8))[:, :, places].flatten(1), 4) for rows in (codes.flatten(1), zeros)
    )
    return {"qweight": columns, "qzeros": zero_columns, "scales": scales.t()}, served


def packed_integers(weight: torch.Tensor, recipe: Recipe) -> Encoded:
    codes, scales, served = symmetric(weight, recipe.bits, recipe.group)
    packed = pack(codes + 2 ** (recipe.bits - 1), recipe.bits)
    shape = torch.tensor(weight.shape, dtype=torch.int64)
    return {"weight_packed": packed, "weight_scale": scales, "weight_shape": shape}, served


def e4m3(weight: torch.Tensor, largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = (largest / E4M3_LARGEST).float()
    return (weight / scales).clamp(-E4M3_LARGEST, E4M3_LARGEST).to(torch.float8_e4m3fn), scales


def fp8_tensor(weight: torch.Tensor, recipe: Recipe) -> Encoded:
    codes, scale = e4m3(weight, weight.abs().amax())
    found = {"weight": codes, "weight_scale": scale}
    if FORMATS[recipe.format].is_static:
        found["input_scale"] = torch.tensor(0.05)
    return found, codes.float() * scale


def fp8_channel(weight: torch.Tensor, recipe: Recipe) -> Encoded:
    codes, scales = e4m3(weight, weight.abs().amax(1, keepdim=True))
    return {"weight": codes, "weight_scale": scales}, codes.float() * scales


def fp8_block(weight: torch.Tensor, recipe: Recipe) -> Encoded:
    blocks = weight.unflatten(0, (-1, 128)).unflatten(2, (-1, 128))
    codes, scales = e4m3(blocks, blocks.abs().amax((1, 3), keepdim=True))
    served = (codes.float() * scales).flatten(2).flatten(0, 1)
    suffix = "weight_scale_inv" if recipe.format == "fp8 block" else "weight_scale"
    return {"weight": codes.flatten(2).flatten(0, 1), suffix: scales[:, 0, :, 0]}, served


def int8(weight: torch.Tensor, recipe: Recipe) -> Encoded:
    scales = weight.abs().amax(1, keepdim=True) / 127
    codes = (weight / scales).round().to(torch.int8)
    return {"weight": codes, "weight_scale": scales}, codes.float() * scales


def gptq_configuration(recipe: Recipe) -> dict[str, Any]:
    dynamic: dict[str, dict] = {f"-:.*{name}$": {} for name in recipe.full}
    return {
        "quant_method": "gptq", "bits": recipe.bits, "group_size": recipe.group, "sym": True, "desc_act": False,
        "lm_head": False, "dynamic": dynamic,
    }  # fmt: skip


def awq_configuration(recipe: Recipe) -> dict[str, Any]:
    return {
        "quant_method": "awq", "bits": 4, "group_size": recipe.group, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": list(recipe.full) or None,
    }  # fmt: skip


def fp8_configuration(recipe: Recipe) -> dict[str, Any]:
    activations = "static" if FORMATS[recipe.format].is_static else "dynamic"
    given = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": activations, "ignored_layers": [*recipe.full]}
    return given | ({"weight_block_size": [128, 128]} if recipe.format == "fp8 block" else {})


def int8_configuration(recipe: Recipe) -> dict[str, Any]:
    return {"quant_method": "w8a8_int8", "ignore": [f"re:.*{name}" for name in recipe.full]}


def compressed(storage: str, weights: dict[str, Any], activations: dict[str, Any] | None) -> Callable:
    def configuration(recipe: Recipe) -> dict[str, Any]:
        sizes = {"num_bits": recipe.bits, "group_size": recipe.group} if storage == "pack-quantized" else {}
        group = {"targets": ["Linear"], "weights": weights | sizes, "input_activations": activations}
        ignore = ["lm_head", *(f"re:.*{name}" for name in recipe.full)]
        return {
            "quant_method": "compressed-tensors", "format": storage, "quantization_status": "compressed",
            "config_groups": {"group_0": group}, "ignore": ignore,
        }  # fmt: skip

    return configuration


@dataclass(frozen=True)
class Format:
    """encode: tensors of a layer by suffix, and the weight for which they stand. configuration: that of the recipe."""

    encode: Callable[[torch.Tensor, Recipe], Encoded]
    configuration: Callable[[Recipe], dict[str, Any]]
    is_static: bool = False


_FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
_FP8_TOKENS = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True, "strategy": "token"}
_INT4 = {"type": "int", "symmetric": True, "dynamic": False, "strategy": "group"}
_INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False, "strategy": "channel"}
FORMATS: dict[str, Format] = {
    "gptq": Format(gptq, gptq_configuration),
    "awq": Format(awq, awq_configuration),
    "fp8 tensor": Format(fp8_tensor, fp8_configuration),
    "fp8 static": Format(fp8_tensor, fp8_configuration, is_static=True),
    "fp8 block": Format(fp8_block, fp8_configuration),
    "int8": Format(int8, int8_configuration),
    "compressed fp8 tensor": Format(
        fp8_tensor, compressed("float-quantized", _FP8 | {"strategy": "tensor"}, _FP8_TOKENS)
    ),
    "compressed fp8 channel": Format(
        fp8_channel, compressed("float-quantized", _FP8 | {"strategy": "channel"}, _FP8_TOKENS)
    ),
    "compressed fp8 block": Format(
        fp8_block,
        compressed("float-quantized", _FP8 | {"strategy": "block", "block_structure": [128, 128]}, _FP8_TOKENS),
    ),
    "compressed int": Format(packed_integers, compressed("pack-quantized", _INT4, None)),
    "compressed int8": Format(int8, compressed("int-quantized", _INT8, _INT8 | {"dynamic": True, "strategy": "token"})),
}
