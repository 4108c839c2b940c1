"""Scales of keys and values in FP8: what a checkpoint may say of them, and where a sparse layer has them.

llm-compressor writes one for a layer's keys and one for its values, or one for each KV head. Without any they are 1:
e4m3 has 8 exponents above and below 1, and numbers outside are what a scale is for.
"""

from collections.abc import Mapping

import torch
from torch import nn

from sala_sglang.config import SALAConfig
from sala_sglang.quantization.scheme import FLOATS

SUFFIXES = "k_scale", "v_scale"  # rows of kv_scales of sala_kernels


def add_kv_scales(attention: nn.Module, kv_heads: int) -> None:
    """Give ``attention`` the buffer ``kv_scales`` [2, kv_heads] float32, of ones.

    A buffer, because SGLang's memory saver restores these; no part of a state_dict, because a checkpoint need not have
    it.
    """
    attention.register_buffer("kv_scales", torch.ones(2, kv_heads, dtype=torch.float32), persistent=False)


def scale_names(config: SALAConfig) -> dict[str, tuple[str, int]]:
    """Module of a sparse layer's attention and row of its scales, by the name of the tensor."""
    return {
        f"model.layers.{layer}.self_attn.{suffix}": (f"model.layers.{layer}.self_attn.attn", row)
        for layer in config.full_attention_layer_ids
        for row, suffix in enumerate(SUFFIXES)
    }


def check_scale(name: str, dtype: torch.dtype | str, shape: tuple[int, ...], kv_heads: int) -> None:
    """Raise ValueError unless a tensor is a scale of all ``kv_heads`` or one for each."""
    if dtype not in FLOATS:
        raise ValueError(f"the checkpoint's {name} is {dtype}; allowed: {', '.join(map(str, FLOATS))}")
    if [size for size in shape if size != 1] not in ([], [kv_heads]):
        raise ValueError(
            f"the checkpoint's {name} has shape {list(shape)}; allowed: one number, or one for each of {kv_heads} KV "
            "heads"
        )


def place_scale(
    modules: Mapping[str, nn.Module], config: SALAConfig, name: str, tensor: torch.Tensor, rank: int, ranks: int
) -> None:
    """Copy the scale ``name`` of the checkpoint to the heads that ``rank`` has.

    Raises ValueError for a shape, dtype or number that cannot be one.
    """
    kv_heads = config.num_key_value_heads
    check_scale(name, tensor.dtype, tuple(tensor.shape), kv_heads)
    numbers = tensor.float().flatten().expand(kv_heads)
    if not (numbers.isfinite() & (numbers > 0)).all():
        raise ValueError(f"the checkpoint's {name} has {numbers.tolist()}; allowed: positive numbers")
    module, row = scale_names(config)[name]
    copied = numbers.repeat_interleave(max(1, ranks // kv_heads))  # ranks beyond the heads have copies of these
    modules[module].get_buffer("kv_scales")[row] = copied.chunk(ranks)[rank]
