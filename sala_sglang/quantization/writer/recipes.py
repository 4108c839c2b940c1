"""The recipes of ``sala-sglang quantize``: a scheme for every linear layer, and how config.json says so."""

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from sala_sglang.checkpoint.parameter_shapes import Shape
from sala_sglang.quantization.configuration import GROUPS, HEAD
from sala_sglang.quantization.formats import Float8, PackedIntegers
from sala_sglang.quantization.plan import WEIGHT, linears
from sala_sglang.quantization.scheme import Scheme

GATES = ("o_gate", "z_proj")
NOT_GATES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FP8_CHANNEL, FP8_BLOCK = Float8("channel", False), Float8("block", False)


@dataclass(frozen=True)
class Recipe:
    """What a recipe makes of the gates of attention and of all other linear layers: None for 4-bit integers.

    Their groups are the same everywhere, and as large as the model allows.
    """

    gates: Scheme | None
    others: Scheme | None

    @property
    def has_integers(self) -> bool:
        return self.gates is None or self.others is None


RECIPES = {
    "fp8": Recipe(FP8_CHANNEL, FP8_CHANNEL),
    "fp8-block": Recipe(FP8_BLOCK, FP8_BLOCK),
    "w4a16": Recipe(None, None),
    "w4-fp8gates": Recipe(FP8_CHANNEL, None),
}


def choose_schemes(name: str, shapes: dict[str, Shape]) -> dict[str, Scheme]:
    """The scheme of every linear layer of a model with tensors of these shapes, without the head.

    Raises ValueError naming a layer whose inputs no group divides, or that is no whole number of blocks.
    """
    recipe = RECIPES[name]
    found: dict[str, Scheme] = {}
    integers: list[str] = []
    for linear in linears(shapes):
        scheme = recipe.gates if linear.endswith(GATES) else recipe.others
        if scheme is None:
            integers.append(linear)
        else:
            found[linear] = scheme
    group = _group({linear: shapes[linear + WEIGHT][1] for linear in integers}) if integers else -1
    found |= dict.fromkeys(integers, PackedIntegers(4, group))
    for linear, scheme in found.items():
        outputs, inputs = shapes[linear + WEIGHT]
        need = scheme.multiples()
        if outputs % need.outputs or inputs % need.inputs:
            raise ValueError(
                f"--recipe {name}: {linear} has {outputs} outputs and {inputs} inputs; allowed: multiples of "
                f"{need.outputs} and {need.inputs}"
            )
    return {linear: found[linear] for linear in linears(shapes)}


def _group(inputs: dict[str, int]) -> int:
    """The largest group that divides the inputs of all these layers."""
    for group in sorted(GROUPS, reverse=True):
        if not any(count % group for count in inputs.values()):
            return group
    linear, count = next((linear, count) for linear, count in inputs.items() if count % min(GROUPS))
    raise ValueError(
        f"{linear} has {count} inputs, which no group of 4-bit integers divides; allowed: multiples of {min(GROUPS)}"
    )


def configuration(schemes: dict[str, Scheme]) -> dict[str, Any]:
    """The ``quantization_config`` of compressed-tensors for what ``choose_schemes`` has chosen."""
    of_gates = next(scheme for linear, scheme in schemes.items() if linear.endswith(GATES))
    others = next(scheme for linear, scheme in schemes.items() if not linear.endswith(GATES))
    if of_gates == others:
        groups = {"group_0": _group_of(others, ["Linear"])}
    else:
        groups = {
            "group_0": _group_of(others, [_pattern(NOT_GATES)]),
            "group_1": _group_of(of_gates, [_pattern(GATES)]),
        }
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [HEAD],
        "kv_cache_scheme": None,
    }


def _pattern(names: tuple[str, ...]) -> str:
    return rf"re:.*\.({'|'.join(names)})$"


def _group_of(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    return {"targets": targets, "output_activations": None} | _entry(scheme)


@singledispatch
def _entry(scheme: Scheme) -> dict[str, Any]:
    raise TypeError(f"no group of compressed-tensors for {scheme.name}")


@_entry.register
def _(scheme: Float8) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": scheme.scales}
    activations = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True, "strategy": "token"}
    if scheme.scales == "block":
        weights["block_structure"] = [128, 128]
        activations |= {"strategy": "group", "group_size": 128}
    return {"format": "float-quantized", "weights": weights, "input_activations": activations}


@_entry.register
def _(scheme: PackedIntegers) -> dict[str, Any]:
    weights = {"num_bits": scheme.bits, "type": "int", "symmetric": True, "dynamic": False}
    weights |= {"strategy": "group", "group_size": scheme.group}
    return {"format": "pack-quantized", "weights": weights, "input_activations": None}
