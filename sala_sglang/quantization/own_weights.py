"""Weights of quantised layers as this project's own products read them; None where they cannot.

On a GPU they are views of what SGLang's methods keep there: nothing is held twice.
"""

from typing import Any

import torch
from sala_kernels.quantised_weights import (
    INT4_INPUTS,
    MARLIN_INPUTS,
    MARLIN_OUTPUTS,
    Float8Weight,
    Int4Weight,
    Weight,
    int4_weight,
)

from sala_sglang.quantization.formats import AWQ, GPTQ, Float8, PackedIntegers
from sala_sglang.quantization.scheme import Scheme, unpack


def on_gpu(scheme: Scheme, layer: Any) -> Weight | None:
    """Of a layer with which SGLang's method is done."""
    match scheme:
        case Float8(scales="block"):
            return Float8Weight(layer.weight, layer.weight_scale_inv)
        case Float8():
            codes = layer.weight.t()
            return Float8Weight(codes, layer.weight_scale.reshape(-1).expand(codes.shape[0]))
        case GPTQ(bits=4, act_order=False):
            return _in_groups(Int4Weight(layer.qweight, layer.scales))
        case PackedIntegers(bits=4):
            return _in_groups(Int4Weight(layer.weight_packed, layer.weight_scale))
        case AWQ():
            return _in_groups(Int4Weight(layer.qweight, layer.scales, layer.qzeros))
    return None


def on_cpu(scheme: Scheme, tensors: dict[str, torch.Tensor], widths: list[int], dtype: torch.dtype) -> Weight | None:
    """Of tensors as files have them, those of merged layers of ``widths`` outputs side by side.

    dtype: of the rows.
    """
    match scheme:
        case Float8() as float8:
            scales = tensors[float8.suffix].float()
            if float8.scales == "tensor":
                scales = scales.repeat_interleave(torch.tensor(widths))
            return Float8Weight(tensors["weight"], scales if float8.scales == "block" else scales.reshape(-1))
        case GPTQ(bits=4, act_order=False):
            return _packed(unpack(tensors["qweight"], 4, 0).t(), tensors["scales"].t(), None, dtype)
        case PackedIntegers(bits=4):
            return _packed(unpack(tensors["weight_packed"], 4, 1), tensors["weight_scale"], None, dtype)
        case AWQ() as awq:
            codes, zeros = (awq.codes(tensors[name]).t() for name in ("qweight", "qzeros"))
            return _packed(codes, tensors["scales"].t(), zeros, dtype)
    return None


def _packed(
    codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, dtype: torch.dtype
) -> Int4Weight | None:
    if codes.shape[0] % MARLIN_OUTPUTS or codes.shape[1] % MARLIN_INPUTS:
        return None
    return _in_groups(int4_weight(codes, scales.to(dtype), zeros))


def _in_groups(weight: Int4Weight) -> Int4Weight | None:
    """The weight, unless its groups do not fit kernels, or are of all inputs, for which Marlin has another order."""
    return weight if weight.scales.shape[0] > 1 and weight.group % INT4_INPUTS == 0 else None
