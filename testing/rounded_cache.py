"""The plain model with the keys and values of its sparse layers rounded, as a server has them in FP8."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sala_sglang.hf import MiniCPMSALAForCausalLM

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
Scales = tuple[torch.Tensor, torch.Tensor]  # of keys and of values, [Hkv] float32 each


def round_keys_and_values(
    model: MiniCPMSALAForCausalLM, scales: Mapping[int, Scales], dtype: torch.dtype = E4M3
) -> list:
    """Round what ``model`` computes as keys and values from now on, by layer; 1 is the scale of layers not named.

    Returns handles whose ``remove()`` undoes it.
    """
    config, handles = model.config, []
    for layer in config.full_attention_layer_ids:
        given = scales.get(layer, (torch.ones(config.num_key_value_heads),) * 2)
        for projection, factors in zip(key_value_projections(model, layer), given, strict=True):
            handles.append(projection.register_forward_hook(_rounding(factors, config.head_dim, dtype)))
    return handles


def key_value_projections(model: MiniCPMSALAForCausalLM, layer: int) -> tuple[nn.Module, nn.Module]:
    attention: Any = model.model.layers[layer].self_attn
    return attention.k_proj, attention.v_proj


def _rounding(factors: torch.Tensor, head_dim: int, dtype: torch.dtype) -> Callable:
    repeated, largest = factors.repeat_interleave(head_dim), torch.finfo(dtype).max

    def rounded(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        quotients = (output.float() / repeated).clamp(-largest, largest)
        return quotients.to(dtype).to(output.dtype) * repeated.to(output.dtype)

    return rounded
